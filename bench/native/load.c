// The load of the benchmark: one thread, epoll.
//
//   load requests PORT CONNECTIONS MILLISECONDS PAUSE_MILLISECONDS REQUESTS
//   load streams  PORT STREAMS SPREAD_MILLISECONDS RECORDS REQUESTS
//
// REQUESTS is a file of whole HTTP requests, "LENGTH\n" and then LENGTH bytes each; connections use them in turns.
// Where one holds "@@@@@@@@", each that is sent has another number there: no two bodies are the same.
// "requests" opens its connections, sends one request on each to warm up and says "ready". From the line that it
// then reads, each connection asks, waits for the whole answer, pauses, and asks again, until the time is over.
// "streams" says "ready" at once; after the line, it opens its streams evenly over the spread and waits for all. They
// are server-sent events or NDJSON, by the answer's Content-Type.
// The last line is one of JSON. It leaves when its input ends, so that its leaving isn't measured.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "answer.h"
#include "common.h"

enum { EVENTS = 512, TEXTS = 64, READ = 1 << 18, NUMBER = 8 };
static const long long MILLI = 1000000, PATIENCE = 60000000000LL;

struct client {
  int fd, turn;
  bool busy, done, blocked;
  long long asked, last, wake;
  const char *text;           // of the request, what isn't sent yet
  size_t left;
  struct answer answer;
};

static struct { char *data, *number; size_t length; } texts[TEXTS];
static struct client *clients;
static int text_count, poll_fd, port, count;
static long long broken, whole, delivered;
static uint32_t *gaps, *firsts;
static size_t gap_count, first_count, gap_room, first_room;

static void read_texts(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) fail(path);
  while (text_count < TEXTS && fscanf(file, "%zu", &texts[text_count].length) == 1) {
    fgetc(file);
    size_t n = texts[text_count].length;
    texts[text_count].data = malloc(n);
    if (fread(texts[text_count].data, 1, n, file) != n) fail("requests");
    texts[text_count].number = memmem(texts[text_count].data, n, "@@@@@@@@", NUMBER);
    text_count++;
  }
  fclose(file);
}

static void note(uint32_t **list, size_t *used, size_t *room, long long nanoseconds) {
  if (*used == *room) *list = realloc(*list, (*room = *room ? *room * 2 : 65536) * sizeof **list);
  if (!*list) fail("memory");
  (*list)[(*used)++] = nanoseconds / 1000;
}

static int by_size(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

// Print "name_p50_us" and so on of a list.
static void spread(const char *name, uint32_t *list, size_t n) {
  if (n) qsort(list, n, sizeof *list, by_size);
  printf(", \"%s_p50_us\": %u, \"%s_p99_us\": %u, \"%s_max_us\": %u", name, n ? list[n / 2] : 0, name,
         n ? list[(n - 1) * 99 / 100] : 0, name, n ? list[n - 1] : 0);
}

static void watch(struct client *c, uint32_t what, int how) {
  struct epoll_event event = {.events = what, .data.ptr = c};
  epoll_ctl(poll_fd, how, c->fd, &event);
}

static void dial(struct client *c) {
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (c->fd < 0) fail("socket");
  int on = 1;
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (connect(c->fd, (struct sockaddr *)&where, sizeof where) && errno != EINPROGRESS) fail("connect");
  watch(c, EPOLLIN, EPOLL_CTL_ADD);
}

// Send what the socket takes; be told when it takes more.
static void push(struct client *c) {
  ssize_t n = write(c->fd, c->text, c->left);
  if (n > 0) c->text += n, c->left -= n;
  if (c->blocked == (c->left > 0)) return;
  c->blocked = c->left > 0;
  watch(c, c->blocked ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
}

// Write another number into a request. One of which a part is still to be sent may change once more: as good.
static void renumber(char *number) {
  static unsigned asked;
  unsigned left = ++asked;
  for (int i = NUMBER - 1; i >= 0; i--, left /= 10) number[i] = '0' + left % 10;
}

static void ask(struct client *c) {
  int which = c->turn++ % text_count;
  if (texts[which].number) renumber(texts[which].number);
  answer_begin(&c->answer);
  c->text = texts[which].data;
  c->left = texts[which].length;
  c->busy = true;
  c->asked = now_ns();
  push(c);
}

// Start again after a failure: the connection is new, the failure is counted.
static void again(struct client *c) {
  broken++;
  close(c->fd);
  c->busy = c->blocked = false;
  c->left = 0;
}

// Read what is there. Returns 1 at the answer's end, -1 when it can't end well any more, else 0.
static int take(struct client *c, long long *at) {
  static char buffer[READ];
  ssize_t n = read(c->fd, buffer, sizeof buffer);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
  if (n <= 0) return n == 0 && c->busy && c->answer.part == UNTIL_CLOSE ? 1 : -1;
  *at = now_ns();
  size_t used = answer_feed(&c->answer, buffer, n);
  if (!c->busy || c->answer.part == BAD || used < (size_t)n) return -1;
  return c->answer.part == OVER;
}

// Requests: ask, wait, ask again.

static long long until, pause_ns;
static int idle;

static void request_event(struct client *c, uint32_t events) {
  long long at = now_ns();
  if (events & EPOLLOUT && c->left) push(c);
  if (!(events & (EPOLLIN | EPOLLERR | EPOLLHUP))) return;
  int end = take(c, &at);
  if (!end) return;
  if (!c->busy && end < 0) {  // an idle connection was closed
    close(c->fd);
    dial(c);
    return;
  }
  if (end > 0) {
    note(&firsts, &first_count, &first_room, at - c->asked);
    if (c->answer.status == 200) whole++; else broken++;
    c->busy = false;
    if (c->answer.close) close(c->fd), dial(c);
  } else {
    again(c);
    dial(c);
  }
  if (at >= until) idle++;
  else if (pause_ns) c->wake = at + pause_ns;
  else ask(c);
}

static void run_requests(void) {
  struct epoll_event events[EVENTS];
  idle = 0;
  for (int i = 0; i < count; i++) ask(&clients[i]);
  while (idle < count) {
    int n = epoll_wait(poll_fd, events, EVENTS, pause_ns ? 1 : 1000);
    for (int i = 0; i < n; i++) request_event(events[i].data.ptr, events[i].events);
    long long now = now_ns();
    if (now > until + PATIENCE) {
      broken += count - idle;
      return;
    }
    for (int i = 0; pause_ns && i < count; i++) {
      struct client *c = &clients[i];
      if (c->wake && now >= c->wake) {
        c->wake = 0;
        if (now >= until) idle++; else ask(c);
      }
    }
  }
}

// Streams.

static int streams_left, records_wanted, open_now, open_peak;

static void stream_event(struct client *c, uint32_t events) {
  if (c->done) return;
  if (events & EPOLLOUT && c->left) push(c);
  if (!(events & (EPOLLIN | EPOLLERR | EPOLLHUP))) return;
  long long at = 0;
  int before = c->answer.records, end = take(c, &at);
  for (int i = before; at && i < c->answer.records; i++) {
    if (i == 0) {
      note(&firsts, &first_count, &first_room, at - c->asked);
      if (++open_now > open_peak) open_peak = open_now;
    }
    else if (i < records_wanted) note(&gaps, &gap_count, &gap_room, at - c->last);
    if (i < records_wanted) delivered++;
    c->last = at;
  }
  if (!end) return;
  if (end > 0 && answer_whole(&c->answer, records_wanted)) whole++; else broken++;
  if (c->answer.records) open_now--;
  c->done = true;
  close(c->fd);
  streams_left--;
}

static void run_streams(long long spread_ns) {
  struct epoll_event events[EVENTS];
  long long began = now_ns(), latest = began;
  int opened = 0;
  streams_left = count;
  while (streams_left) {
    long long now = now_ns(), wait = 1000 * MILLI;
    for (int burst = 0; opened < count && burst < 64; burst++) {
      long long when = began + spread_ns * opened / count;
      wait = when - now;
      if (wait > 0) break;
      dial(&clients[opened]);
      ask(&clients[opened++]);
      latest = now = now_ns();
    }
    if (wait < 0) wait = 0;
    struct timespec timeout = {wait / 1000000000LL, wait % 1000000000LL};
    int n = epoll_pwait2(poll_fd, events, EVENTS, &timeout, NULL);
    for (int i = 0; i < n; i++) stream_event(events[i].data.ptr, events[i].events);
    if (now > latest + 3 * PATIENCE) {
      broken += streams_left;
      return;
    }
  }
}

int main(int argc, char **argv) {
  if (argc != 7) return fprintf(stderr, "usage: load requests|streams PORT COUNT MILLISECONDS NUMBER REQUESTS\n"), 2;
  signal(SIGPIPE, SIG_IGN);
  bool streams = !strcmp(argv[1], "streams");
  port = atoi(argv[2]);
  count = atoi(argv[3]);
  long long time_ns = atoll(argv[4]) * MILLI;
  read_texts(argv[6]);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  poll_fd = epoll_create1(EPOLL_CLOEXEC);
  clients = calloc(count, sizeof *clients);
  for (int i = 0; i < count; i++) clients[i].turn = i;
  if (!streams) {
    for (int i = 0; i < count; i++) dial(&clients[i]);
    until = now_ns();
    run_requests();  // the time is over: one each
    pause_ns = atoll(argv[5]) * MILLI;
  } else records_wanted = atoi(argv[5]);
  long long failed_warm = broken;
  whole = broken = 0;
  first_count = 0;
  puts("ready");
  fflush(stdout);
  if (getchar() == EOF) return 1;
  long long began = now_ns();
  until = began + time_ns;
  if (streams) run_streams(time_ns); else run_requests();
  printf("{\"seconds\": %.4f, \"whole\": %lld, \"broken\": %lld, \"broken_warm\": %lld", (now_ns() - began) / 1e9, whole, broken, failed_warm);
  if (streams) printf(", \"open_peak\": %d, \"delivered\": %lld", open_peak, delivered);
  spread("first", firsts, first_count);
  spread("gap", gaps, gap_count);
  puts("}");
  fflush(stdout);
  while (getchar() != EOF) continue;
  return 0;
}
