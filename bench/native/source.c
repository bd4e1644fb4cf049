// The upstream of the benchmark: one thread, epoll, keep-alive. It answers as Ollama's HTTP API does.
//
//   source PORT ANSWERS CHUNKS GAP_MICROSECONDS
//
// ANSWERS is a file of records, "KIND WORD PATH LENGTH\n" and then LENGTH bytes:
//   answer METHOD PATH   what is said to METHOD PATH, always the same (the control API)
//   json   -      PATH   one of several bodies of an inference answer; they are given in turns
//   chunk  TYPE   PATH   one record of a streamed answer of this content type
//   last   TYPE   PATH   its last record, with all that ends it in that dialect
// A request whose body says "stream":true gets CHUNKS records, the first at once, the others GAP apart.
// A late record doesn't move the ones after it, and waiting streams are served in turns.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common.h"

enum { BUFFER = 16384, RECORDS = 64, EVENTS = 512, BURST = 128, ADDRESSES = 8 };

struct record {
  char kind[8], word[64], path[64];
  char *data;
  size_t length;
};

struct connection {
  int fd;
  size_t held;          // bytes in buffer
  size_t discard;       // of a long body that are still to come
  bool streaming, dead, listens;
  int sent;             // records of the stream
  long long due;        // of the next record, nanoseconds
  struct record *chunk, *last;
  struct connection *before, *after;  // in the queue of streams, by due time
  char buffer[BUFFER];
};

static struct record records[RECORDS];
static int record_count, chunks, poll_fd;
static long long gap;
static struct connection *first, *final;

static void read_records(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) fail(path);
  struct record *r = records;
  while (record_count < RECORDS && fscanf(file, "%7s %63s %63s %zu", r->kind, r->word, r->path, &r->length) == 4) {
    fgetc(file);
    r->data = malloc(r->length + 1);
    if (!r->data || fread(r->data, 1, r->length, file) != r->length) fail("answers");
    r->data[r->length] = 0;
    r = &records[++record_count];
  }
  fclose(file);
}

static struct record *find(const char *kind, const char *word, const char *path, int nth) {
  struct record *found[RECORDS];
  int count = 0;
  for (int i = 0; i < record_count; i++)
    if (!strcmp(records[i].kind, kind) && (!word || !strcmp(records[i].word, word)) && !strcmp(records[i].path, path))
      found[count++] = &records[i];
  return count ? found[nth % count] : NULL;
}

static void queue(struct connection *c) {
  c->before = final;
  c->after = NULL;
  if (final) final->after = c; else first = c;
  final = c;
}

static void unqueue(struct connection *c) {
  if (c->before) c->before->after = c->after; else first = c->after;
  if (c->after) c->after->before = c->before; else final = c->before;
}

static void drop(struct connection *c) {
  if (c->dead) return;
  if (c->streaming) unqueue(c);
  c->dead = true;
  close(c->fd);
}

// Write all of it or give the connection up: answers are far smaller than a socket's buffer.
static bool say(struct connection *c, const char *data, size_t length) {
  if (write(c->fd, data, length) == (ssize_t)length) return true;
  drop(c);
  return false;
}

static const char *date(void) {
  static char text[64];
  static time_t made;
  time_t now = time(NULL);
  if (now != made) {
    made = now;
    strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", gmtime(&now));
  }
  return text;
}

static void answer(struct connection *c, int status, struct record *body) {
  char out[65536];
  int n = snprintf(out, sizeof out,
                   "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nDate: %s\r\nContent-Length: %zu\r\n\r\n", status,
                   status == 200 ? "OK" : "Not Found", date(), body ? body->length : 0);
  if (body && body->length > sizeof out - n) fail("an answer is too long");
  if (body) memcpy(out + n, body->data, body->length);
  say(c, out, n + (body ? body->length : 0));
}

// Send a stream's next record; false when the stream is over, or its connection.
static bool next_record(struct connection *c) {
  char out[8192];
  int n = 0;
  bool is_last = c->sent == chunks - 1;
  struct record *r = is_last ? c->last : c->chunk;
  if (c->sent == 0)
    n = snprintf(out, sizeof out,
                 "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nDate: %s\r\nTransfer-Encoding: chunked\r\n\r\n", r->word, date());
  n += snprintf(out + n, sizeof out - n, "%zx\r\n%s\r\n%s", r->length, r->data, is_last ? "0\r\n\r\n" : "");
  ssize_t wrote = write(c->fd, out, n);
  if (wrote < 0 && errno == EAGAIN) return true;  // nobody reads: once more at the next turn
  if (wrote != n) {
    drop(c);
    return false;
  }
  c->sent++;
  return !is_last;
}

static void request(struct connection *c, const char *body, size_t length) {
  static int turn;
  char method[16] = "", path[64] = "";
  sscanf(c->buffer, "%15s %63[^ ?]", method, path);
  struct record *fixed = find("answer", method, path, 0);
  bool load = !strcmp(path, "/api/generate") || !strcmp(path, "/api/embed");
  if (load || (fixed && strcmp(method, "POST"))) {
    answer(c, 200, fixed);
    return;
  }
  bool stream = memmem(body, length, "\"stream\":true", 13) || memmem(body, length, "\"stream\": true", 14);
  c->chunk = stream ? find("chunk", NULL, path, 0) : NULL;
  if (!c->chunk) {
    struct record *json = find("json", NULL, path, turn++);
    answer(c, json || fixed ? 200 : 404, json ? json : fixed);
    return;
  }
  c->last = find("last", NULL, path, 0);
  c->sent = 0;
  c->due = now_ns() + gap;
  if (!next_record(c)) return;
  c->streaming = true;
  queue(c);
}

static size_t content_length(struct connection *c, const char *head_end) {
  for (char *line = c->buffer; line && line < head_end; line = strstr(line, "\r\n")) {
    if (line[0] == '\r') line += 2;
    if (!strncasecmp(line, "content-length:", 15)) return strtoull(line + 15, NULL, 10);
  }
  return 0;
}

// Serve every request that is whole. Bodies with a length only, except short chunked ones.
static void serve(struct connection *c) {
  while (!c->dead && !c->streaming && c->held) {
    c->buffer[c->held] = 0;
    char *end = strstr(c->buffer, "\r\n\r\n");
    if (!end) {
      if (c->held >= BUFFER - 1) drop(c);
      return;
    }
    size_t head = end + 4 - c->buffer, length = content_length(c, end), whole;
    if (!length && strcasestr(c->buffer, "\r\ntransfer-encoding: chunked\r\n")) {
      char *over = memmem(c->buffer + head, c->held - head, "0\r\n\r\n", 5);
      if (!over) return;
      length = over + 5 - (c->buffer + head);
    }
    whole = head + length;
    size_t here = c->held < whole ? c->held : whole;
    if (here < whole) {
      if (whole < BUFFER - 1) return;
      if (c->held < BUFFER - 1) return;
      c->discard = whole - here;  // a long body: its beginning has said what was asked for
      return;
    }
    request(c, c->buffer + head, here - head);
    c->held -= here;
    memmove(c->buffer, c->buffer + here, c->held);
  }
}

static void readable(struct connection *c) {
  static char waste[1 << 18];
  if (c->discard) {
    ssize_t n = read(c->fd, waste, c->discard < sizeof waste ? c->discard : sizeof waste);
    if (n <= 0) {
      if (n == 0 || errno != EAGAIN) drop(c);
      return;
    }
    c->discard -= n;
    if (c->discard) return;
    char *end = strstr(c->buffer, "\r\n\r\n") + 4;
    request(c, end, c->held - (end - c->buffer));
    c->held = 0;
    return;
  }
  size_t room = BUFFER - 1 - c->held;
  ssize_t n = room ? read(c->fd, c->buffer + c->held, room) : 0;
  if (n <= 0) {
    if (n == 0 || errno != EAGAIN) drop(c);
    return;
  }
  c->held += n;
  serve(c);
}

static void accept_all(int listener) {
  for (;;) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct connection *c = malloc(sizeof *c);
    if (!c) fail("malloc");
    memset(c, 0, offsetof(struct connection, buffer));
    c->fd = fd;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
  }
}

// Send what is due, a bounded number at a time so that new requests aren't kept waiting.
static void send_due(void) {
  long long now = now_ns();
  for (int i = 0; i < BURST && first && first->due <= now; i++) {
    struct connection *c = first;
    unqueue(c);
    c->streaming = false;
    if (next_record(c)) {
      c->streaming = true;
      c->due += gap;
      queue(c);
    } else if (c->dead) {
      free(c);
    } else if (c->held) {
      serve(c);
      if (c->dead) free(c);
    }
  }
}

int main(int argc, char **argv) {
  if (argc != 5) return fprintf(stderr, "usage: source PORT ANSWERS CHUNKS GAP_MICROSECONDS\n"), 2;
  signal(SIGPIPE, SIG_IGN);
  read_records(argv[2]);
  chunks = atoi(argv[3]);
  gap = atoll(argv[4]) * 1000;
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  poll_fd = epoll_create1(EPOLL_CLOEXEC);
  // As many instances as the host has: 127.0.0.1 and the addresses after it.
  for (int i = 0; i < ADDRESSES; i++) {
    struct connection *listener = calloc(1, sizeof *listener);
    int on = 1;
    listener->listens = true;
    listener->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK + i)};
    if (bind(listener->fd, (struct sockaddr *)&where, sizeof where) || listen(listener->fd, 4096)) fail("listen");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = listener};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener->fd, &event);
  }
  struct epoll_event events[EVENTS];
  for (;;) {
    long long wait = first ? first->due - now_ns() : 1000000000LL;
    if (wait < 0) wait = 0;
    struct timespec timeout = {wait / 1000000000LL, wait % 1000000000LL};
    int n = epoll_pwait2(poll_fd, events, EVENTS, &timeout, NULL);
    for (int i = 0; i < n; i++) {
      struct connection *c = events[i].data.ptr;
      if (c->listens) accept_all(c->fd);
      else readable(c);
      if (c->dead) free(c);
    }
    send_due();
  }
}
