// Following an HTTP/1.1 answer: its status, where it ends, and how many records its body holds.
// Needs _GNU_SOURCE.
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD_BYTES = 4096, TAIL_BYTES = 256 };
enum part { HEAD, LENGTH, SIZE, DATA, DATA_END, TRAILER, UNTIL_CLOSE, OVER, BAD };

struct answer {
  enum part part;
  int status;
  int records;              // of server-sent events each ends with an empty line, of NDJSON with its line
  bool lines;               // it is NDJSON
  bool close;               // the server won't keep the connection
  size_t left;              // of the body or of the chunk
  size_t held;
  char tail[TAIL_BYTES];    // the body's last bytes
  char previous;
  char head[HEAD_BYTES];
};

static void answer_begin(struct answer *a) {
  memset(a, 0, offsetof(struct answer, head));
}

static const char *answer_field(const char *head, const char *name) {
  size_t n = strlen(name);
  for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
    if (!strncasecmp(line + 2, name, n) && line[2 + n] == ':') return line + 3 + n + strspn(line + 3 + n, " ");
  return NULL;
}

static void answer_head(struct answer *a) {
  a->status = atoi(a->head + 9);
  const char *type = answer_field(a->head, "content-type");
  const char *length = answer_field(a->head, "content-length");
  const char *coding = answer_field(a->head, "transfer-encoding");
  const char *connection = answer_field(a->head, "connection");
  a->close = connection && !strncasecmp(connection, "close", 5);
  a->lines = type && !strncasecmp(type, "application/x-ndjson", 20);
  if (coding && !strncasecmp(coding, "chunked", 7)) a->part = SIZE;
  else if (length) a->part = (a->left = strtoull(length, NULL, 10)) ? LENGTH : OVER;
  else a->part = UNTIL_CLOSE;
}

static void answer_body(struct answer *a, const char *data, size_t n) {
  for (const char *p = data; (p = memchr(p, '\n', data + n - p)); p++)
    if (a->lines || (p == data ? a->previous : p[-1]) == '\n') a->records++;
  a->previous = data[n - 1];
  size_t keep = n < sizeof a->tail ? n : sizeof a->tail;
  memmove(a->tail, a->tail + keep, sizeof a->tail - keep);
  memcpy(a->tail + sizeof a->tail - keep, data + n - keep, keep);
}

// Whether a streamed answer is whole: so many records, and the end that its dialect has.
static bool answer_whole(const struct answer *a, int records) {
  if (a->status != 200 || a->part != OVER) return false;
  if (a->lines) return a->records == records && memmem(a->tail, TAIL_BYTES, "\"done\":true", 11);
  return a->records == records + 1 && !memcmp(a->tail + TAIL_BYTES - 14, "data: [DONE]\n\n", 14);
}

// Take bytes; returns how many of them belonged to this answer.
static size_t answer_feed(struct answer *a, const char *data, size_t n) {
  size_t at = 0;
  while (at < n && a->part != OVER && a->part != BAD) {
    if (a->part == HEAD) {
      size_t had = a->held, take = n - at < HEAD_BYTES - 1 - had ? n - at : HEAD_BYTES - 1 - had;
      memcpy(a->head + had, data + at, take);
      a->head[a->held = had + take] = 0;
      char *end = strstr(a->head, "\r\n\r\n");
      if (!end) {
        at += take;
        if (a->held >= HEAD_BYTES - 1) a->part = BAD;
        continue;
      }
      at += end + 4 - a->head - had;
      end[2] = 0;
      answer_head(a);
    } else if (a->part == LENGTH || a->part == DATA) {
      size_t take = n - at < a->left ? n - at : a->left;
      answer_body(a, data + at, take);
      at += take;
      if (!(a->left -= take)) a->part = a->part == LENGTH ? OVER : DATA_END;
    } else if (a->part == UNTIL_CLOSE) {
      answer_body(a, data + at, n - at);
      at = n;
    } else {
      // A line: a chunk's size, the empty line after its data, or the trailer's.
      char byte = data[at++];
      if (byte != '\n') {
        if (byte != '\r' && a->part == SIZE) {
          int digit = byte >= '0' && byte <= '9' ? byte - '0' : (byte | 32) >= 'a' && (byte | 32) <= 'f' ? (byte | 32) - 'a' + 10 : -1;
          if (digit < 0) a->part = BAD;
          else a->left = a->left * 16 + digit;
        } else if (byte != '\r' && a->part == TRAILER) a->part = BAD;
      } else if (a->part == DATA_END) a->part = SIZE;
      else if (a->part == TRAILER) a->part = OVER;
      else a->part = a->left ? DATA : TRAILER;
    }
  }
  return at;
}
