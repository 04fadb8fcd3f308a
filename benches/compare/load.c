/*
 * The load and the far end of the comparison: what `wrk` and `nginx` do not
 * measure. One thread, epoll, no dependencies. `run` compiles it, starts it and
 * reads its JSON; nothing here knows one proxy from another.
 *
 *   load sink                       the far end of tunnels; prints its port
 *   load relay --target PORT        a bare TCP relay, the measure of tunnels
 *   load setup ...                  tunnels opened, pinged and closed per second
 *   load bulk ...                   bytes through tunnels, or one large response
 *   load idle ...                   tunnels held open until standard input ends
 *   load latency ...                requests at a fixed rate, timed from when
 *                                   they were due and not from when they were sent
 *
 * Every byte that comes back is compared with what must come back: a proxy that
 * answers wrongly is an error here (exit 1), not a fast proxy.
 *
 * It talks to 127.0.0.1 and to nothing else.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* The size of one read, and of a relay's buffer each way. */
enum { CHUNK = 64 * 1024, HEAD_MAX = 8 * 1024, EVENTS = 256 };

/* ---- what everything shares ------------------------------------------- */

struct options {
    int proxy;             /* port to dial */
    int target;            /* port to name in the request */
    bool direct;           /* dial and speak at once, without CONNECT */
    const char *header;    /* one header line for the proxy, or "" */
    const char *path;      /* of `latency`, and of `bulk` without tunnels */
    int connections;
    double seconds;
    double rate;
    uint64_t bytes;
};

/* What is said in a tunnel. Neither begins HTTP or TLS, so a proxy that looks
 * at the first bytes knows at once that it is neither. */
#define PING "\x01"
#define SEND "\x02"

/* Twice over, so that any CHUNK bytes of the stream lie in one piece. */
static unsigned char pattern[2 * CHUNK];

static void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

static void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

/* The same bytes that `run` writes into the large file: x = x * 1103515245 +
 * 12345 from 1, bits 16 to 23. Zeros would hide a shifted or repeated block. */
static void fill_pattern(void)
{
    uint32_t x = 1;
    for (int i = 0; i < CHUNK; i++) {
        x = x * 1103515245u + 12345u;
        pattern[i] = pattern[i + CHUNK] = (unsigned char)(x >> 16);
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int open_socket(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static struct sockaddr_in loopback(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

/* A connection under way; it becomes writable when it stands or has failed. */
static int dial(int port)
{
    int fd = open_socket();
    struct sockaddr_in a = loopback(port);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0 && errno != EINPROGRESS)
        die("connect to port %d: %s", port, strerror(errno));
    return fd;
}

static int listen_anywhere(void)
{
    int fd = open_socket();
    struct sockaddr_in a = loopback(0);
    socklen_t length = sizeof a;
    if (bind(fd, (struct sockaddr *)&a, sizeof a) < 0 || listen(fd, 4096) < 0 ||
        getsockname(fd, (struct sockaddr *)&a, &length) < 0)
        die("listen: %s", strerror(errno));
    printf("%d\n", ntohs(a.sin_port));
    fflush(stdout);
    return fd;
}

static void watch(int epoll, int operation, int fd, uint32_t events, void *who)
{
    struct epoll_event e = {.events = events, .data.ptr = who};
    if (epoll_ctl(epoll, operation, fd, &e) < 0)
        die("epoll_ctl: %s", strerror(errno));
}

static int new_epoll(void)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        die("epoll_create1: %s", strerror(errno));
    return epoll;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct samples {
    double *at;
    size_t length, capacity;
};

static void add_sample(struct samples *s, double value)
{
    if (s->length == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 4096;
        s->at = realloc(s->at, s->capacity * sizeof *s->at);
        if (!s->at)
            die("out of memory");
    }
    s->at[s->length++] = value;
}

/* Of sorted samples, by nearest rank. */
static double percentile(const struct samples *s, double p)
{
    if (!s->length)
        return 0;
    size_t i = (size_t)(p * (double)s->length);
    return s->at[i < s->length ? i : s->length - 1];
}

static void print_latencies(struct samples *s)
{
    if (s->length)
        qsort(s->at, s->length, sizeof *s->at, compare_doubles);
    printf("\"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f",
           1e6 * percentile(s, 0.50), 1e6 * percentile(s, 0.90), 1e6 * percentile(s, 0.99),
           1e6 * percentile(s, 1.00));
}

/* ---- one client connection -------------------------------------------- */

/*
 * A client connection goes through these in order and stops where its mode
 * wants it: dialled, its request sent, the head of the answer read, then the
 * bytes after the head.
 */
enum phase { CLOSED, DIALLING, HEAD, OPEN };

struct client {
    int fd;
    enum phase phase;
    double started;         /* or due, in `latency` */
    char out[HEAD_MAX];     /* the request, not yet all sent */
    size_t out_length, out_sent;
    char head[HEAD_MAX];    /* the answer's head, so far */
    size_t head_length;
    uint64_t expected;      /* bytes of pattern still to come */
    uint64_t offset;        /* place of the next one in the pattern */
    bool close_after;       /* the answer said `Connection: close` */
    bool busy;
    bool reused;            /* has carried a request before this one */
};

static void queue(struct client *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void queue(struct client *c, const char *format, ...)
{
    if (c->out_sent == c->out_length)
        c->out_sent = c->out_length = 0;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(c->out + c->out_length, sizeof c->out - c->out_length, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof c->out - c->out_length)
        die("a request does not fit %d bytes", HEAD_MAX);
    c->out_length += (size_t)n;
}

/* Sends what is queued; true when nothing is left. */
static bool flush(struct client *c)
{
    while (c->out_sent < c->out_length) {
        ssize_t n = send(c->fd, c->out + c->out_sent, c->out_length - c->out_sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            return false;
        /* A connection that was closed meanwhile says so when it is read. */
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET)) {
            c->out_sent = c->out_length;
            return true;
        }
        if (n < 0)
            die("send: %s", strerror(errno));
        c->out_sent += (size_t)n;
    }
    return true;
}

static void queue_connect(struct client *c, const struct options *o)
{
    queue(c, "CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s%s\r\n", o->target, o->target,
          o->header, *o->header ? "\r\n" : "");
}

static void queue_get(struct client *c, const struct options *o)
{
    if (o->direct)
        queue(c, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n", o->path, o->target);
    else
        queue(c, "GET http://127.0.0.1:%d%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s%s\r\n", o->target,
              o->path, o->target, o->header, *o->header ? "\r\n" : "");
}

static void finish_dialling(struct client *c, int epoll)
{
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error)
        die("connect: %s", strerror(error));
    if (!flush(c))
        die("a request of %zu bytes did not fit the socket's buffer", c->out_length);
    watch(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
}

/*
 * Reads the head of an answer, which must be a 200. True when it is whole; bytes
 * after it, which belong to what follows, stay in the socket: they are peeked
 * and only the head is taken.
 */
static bool read_head(struct client *c)
{
    ssize_t n = recv(c->fd, c->head, sizeof c->head - 1, MSG_PEEK);
    if (n < 0 && errno == EAGAIN)
        return false;
    if (n < 0)
        die("recv: %s", strerror(errno));
    if (n == 0)
        die("the connection closed before the head of the answer was whole");
    c->head[n] = '\0';
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) {
        if ((size_t)n == sizeof c->head - 1)
            die("the head of the answer is longer than %d bytes", HEAD_MAX);
        return false;
    }
    c->head_length = (size_t)(end - c->head) + 4;
    if (recv(c->fd, c->head, c->head_length, 0) != (ssize_t)c->head_length)
        die("recv: the head was there and is gone");
    c->head[c->head_length] = '\0';
    if (strncmp(c->head, "HTTP/1.", 7) != 0 || strncmp(c->head + 8, " 200", 4) != 0)
        die("the answer is not 200:\n%s", c->head);
    return true;
}

/* Takes a body's length and whether the connection stays, from the head. */
static void read_framing(struct client *c)
{
    char *length = strcasestr(c->head, "\r\ncontent-length:");
    if (!length)
        die("the answer has no Content-Length:\n%s", c->head);
    c->expected = strtoull(length + strlen("\r\ncontent-length:"), NULL, 10);
    c->offset = 0;
    c->close_after = strcasestr(c->head, "\r\nconnection: close") != NULL ||
                     strncmp(c->head, "HTTP/1.0", 8) == 0;
}

/* Reads pattern bytes and compares them. False when the socket is empty. */
static bool read_pattern(struct client *c)
{
    static unsigned char buffer[CHUNK];
    size_t want = c->expected < CHUNK ? (size_t)c->expected : CHUNK;
    ssize_t n = recv(c->fd, buffer, want, 0);
    if (n < 0 && errno == EAGAIN)
        return false;
    if (n < 0)
        die("recv: %s", strerror(errno));
    if (n == 0)
        die("the connection closed with %" PRIu64 " bytes still to come", c->expected);
    if (memcmp(buffer, pattern + c->offset % CHUNK, (size_t)n) != 0)
        die("wrong bytes at or after offset %" PRIu64, c->offset);
    c->offset += (uint64_t)n;
    c->expected -= (uint64_t)n;
    return true;
}

/* Reads the one byte that answers a ping. */
static bool read_pong(struct client *c)
{
    char byte;
    ssize_t n = recv(c->fd, &byte, 1, 0);
    if (n < 0 && errno == EAGAIN)
        return false;
    if (n != 1 || byte != 'p')
        die("a ping was not answered: %s", n == 0 ? "the tunnel closed" : "wrong byte");
    return true;
}

static void start(struct client *c, const struct options *o, int epoll)
{
    c->fd = dial(o->proxy);
    c->phase = DIALLING;
    c->started = now();
    c->out_sent = c->out_length = 0;
    watch(epoll, EPOLL_CTL_ADD, c->fd, EPOLLOUT, c);
}

static void stop(struct client *c)
{
    close(c->fd);
    c->phase = CLOSED;
}

static struct client *new_clients(int count)
{
    struct client *clients = calloc((size_t)count, sizeof *clients);
    if (!clients)
        die("out of memory");
    return clients;
}

/* ---- setup: tunnels opened, pinged and closed --------------------------- */

static int run_setup(const struct options *o)
{
    int epoll = new_epoll();
    struct client *clients = new_clients(o->connections);
    struct samples times = {0};
    double begin = now(), end = begin + o->seconds;
    int open = o->connections;
    for (int i = 0; i < o->connections; i++) {
        start(&clients[i], o, epoll);
        if (!o->direct)
            queue_connect(&clients[i], o);
        else
            queue(&clients[i], PING);
    }
    while (open > 0) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(epoll, events, EVENTS, 30000);
        if (n == 0)
            die("nothing happened for 30 s with %d tunnels being set up", open);
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            if (c->phase == DIALLING) {
                finish_dialling(c, epoll);
                c->phase = o->direct ? OPEN : HEAD;
                continue;
            }
            if (c->phase == HEAD) {
                if (!read_head(c))
                    continue;
                queue(c, PING);
                flush(c);
                c->phase = OPEN;
                continue;
            }
            if (!read_pong(c))
                continue;
            double t = now();
            add_sample(&times, t - c->started);
            stop(c);
            if (t >= end) {
                open--;
                continue;
            }
            start(c, o, epoll);
            if (!o->direct)
                queue_connect(c, o);
            else
                queue(c, PING);
        }
    }
    double seconds = now() - begin;
    printf("{\"completed\": %zu, \"seconds\": %.6f, ", times.length, seconds);
    print_latencies(&times);
    puts("}");
    return 0;
}

/* ---- bulk: bytes through tunnels, or one large response ----------------- */

static int run_bulk(const struct options *o)
{
    int epoll = new_epoll();
    struct client *clients = new_clients(o->connections);
    uint64_t total = 0;
    int open = o->connections, ready = 0;
    double begin = 0;
    for (int i = 0; i < o->connections; i++) {
        start(&clients[i], o, epoll);
        if (o->path)
            queue_get(&clients[i], o);
        else if (!o->direct)
            queue_connect(&clients[i], o);
        else
            queue(&clients[i], PING);
    }
    while (open > 0) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(epoll, events, EVENTS, 30000);
        if (n == 0)
            die("nothing happened for 30 s with %d transfers open", open);
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            switch (c->phase) {
            case CLOSED:
                break;
            case DIALLING:
                if (begin == 0 && o->path)
                    begin = now();
                finish_dialling(c, epoll);
                c->phase = HEAD;
                break;
            case HEAD:
                if (o->path) {
                    if (!read_head(c))
                        break;
                    read_framing(c);
                    if (c->expected != o->bytes)
                        die("the body has %" PRIu64 " bytes, not %" PRIu64, c->expected, o->bytes);
                    c->phase = OPEN;
                    break;
                }
                /* A tunnel counts from the moment that all of them stand. */
                if (o->direct ? !read_pong(c) : !read_head(c))
                    break;
                if (++ready == o->connections) {
                    begin = now();
                    for (int k = 0; k < o->connections; k++) {
                        clients[k].expected = o->bytes;
                        clients[k].offset = 0;
                        clients[k].phase = OPEN;
                        queue(&clients[k], SEND "%016" PRIx64, o->bytes);
                        flush(&clients[k]);
                    }
                }
                break;
            case OPEN:
                /* A few reads a turn, so that no tunnel starves another. */
                for (int reads = 0; reads < 4 && c->expected > 0 && read_pattern(c); reads++)
                    ;
                if (c->expected == 0) {
                    total += c->offset;
                    stop(c);
                    open--;
                }
                break;
            }
        }
    }
    printf("{\"bytes\": %" PRIu64 ", \"seconds\": %.6f}\n", total, now() - begin);
    return 0;
}

/* ---- idle: tunnels held open -------------------------------------------- */

/* Pings every tunnel and waits for all the answers. */
static void ping_all(struct client *clients, int count, int epoll)
{
    for (int i = 0; i < count; i++) {
        queue(&clients[i], PING);
        flush(&clients[i]);
        clients[i].busy = true;
    }
    for (int waiting = count; waiting > 0;) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(epoll, events, EVENTS, 30000);
        if (n == 0)
            die("%d of %d idle tunnels did not answer within 30 s", waiting, count);
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            if (read_pong(c)) {
                if (!c->busy)
                    die("a tunnel answered twice");
                c->busy = false;
                waiting--;
            }
        }
    }
}

static int run_idle(const struct options *o)
{
    int epoll = new_epoll();
    struct client *clients = new_clients(o->connections);
    /* Opened 64 at a time: the subject is what they cost, not a full backlog. */
    for (int from = 0; from < o->connections; from += 64) {
        int to = from + 64 < o->connections ? from + 64 : o->connections;
        for (int i = from; i < to; i++) {
            start(&clients[i], o, epoll);
            if (!o->direct)
                queue_connect(&clients[i], o);
        }
        for (int waiting = to - from; waiting > 0;) {
            struct epoll_event events[EVENTS];
            int n = epoll_wait(epoll, events, EVENTS, 30000);
            if (n == 0)
                die("nothing happened for 30 s with %d tunnels open", from);
            for (int i = 0; i < n; i++) {
                struct client *c = events[i].data.ptr;
                if (c->phase == DIALLING) {
                    finish_dialling(c, epoll);
                    c->phase = o->direct ? OPEN : HEAD;
                    waiting -= o->direct;
                } else if (c->phase == HEAD && read_head(c)) {
                    c->phase = OPEN;
                    waiting--;
                }
            }
        }
    }
    ping_all(clients, o->connections, epoll);
    printf("{\"open\": %d}\n", o->connections);
    fflush(stdout);
    char byte;
    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
    ping_all(clients, o->connections, epoll);
    printf("{\"alive\": %d}\n", o->connections);
    return 0;
}

/* ---- latency: a fixed rate ---------------------------------------------- */

/* Whether the far side has closed, with nothing left to read. */
static bool is_gone(struct client *c)
{
    char byte;
    ssize_t n = recv(c->fd, &byte, 1, MSG_PEEK);
    return n == 0 || (n < 0 && errno != EAGAIN);
}

static void send_get(struct client *c, const struct options *o, int epoll, double due)
{
    c->busy = true;
    c->reused = c->phase != CLOSED && !is_gone(c);
    if (c->phase != CLOSED && !c->reused)
        stop(c);
    if (c->reused) {
        queue_get(c, o);
        flush(c);
        c->phase = HEAD;
    } else {
        start(c, o, epoll);
        queue_get(c, o);
    }
    c->started = due;
}

static int run_latency(const struct options *o)
{
    int epoll = new_epoll();
    struct client *clients = new_clients(o->connections);
    struct samples times = {0};
    uint64_t due_count = (uint64_t)(o->rate * o->seconds), sent = 0, again = 0;
    double begin = now() + 0.05;
    while (times.length < due_count) {
        double due = begin + (double)sent / o->rate, t = now();
        /* What is due goes out on any free connection; what finds none waits,
         * and its waiting counts. */
        for (int i = 0; i < o->connections && sent < due_count && due <= t; i++) {
            if (clients[i].busy)
                continue;
            send_get(&clients[i], o, epoll, due);
            due = begin + (double)++sent / o->rate;
        }
        bool free_one = false;
        for (int i = 0; i < o->connections; i++)
            free_one |= !clients[i].busy;
        struct timespec wait = {.tv_sec = 30};
        if (sent < due_count && free_one) {
            double left = due - now();
            left = left > 0 ? left : 0;
            wait.tv_sec = (time_t)left;
            wait.tv_nsec = (long)((left - (double)wait.tv_sec) * 1e9);
        }
        struct epoll_event events[EVENTS];
        int n = epoll_pwait2(epoll, events, EVENTS, &wait, NULL);
        if (n < 0 && errno != EINTR)
            die("epoll_pwait2: %s", strerror(errno));
        if (n == 0 && wait.tv_sec == 30)
            die("nothing happened for 30 s at %.0f requests a second", o->rate);
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            if (!c->busy) {
                /* The far side has closed an idle connection, as it may. */
                stop(c);
                continue;
            }
            if (c->phase == DIALLING) {
                finish_dialling(c, epoll);
                c->phase = HEAD;
                continue;
            }
            if (c->phase == HEAD) {
                /* Closed before it saw the request, which so goes out again
                 * (RFC 9112 section 9.3.1). */
                if (c->reused && is_gone(c)) {
                    stop(c);
                    send_get(c, o, epoll, c->started);
                    again++;
                    continue;
                }
                if (!read_head(c))
                    continue;
                read_framing(c);
                if (c->expected != o->bytes)
                    die("the body has %" PRIu64 " bytes, not %" PRIu64, c->expected, o->bytes);
                c->phase = OPEN;
            }
            while (c->expected > 0 && read_pattern(c))
                ;
            if (c->expected == 0) {
                add_sample(&times, now() - c->started);
                c->busy = false;
                if (c->close_after)
                    stop(c);
            }
        }
    }
    printf("{\"completed\": %zu, \"sent_again\": %" PRIu64 ", \"seconds\": %.6f, ", times.length, again,
           now() - begin);
    print_latencies(&times);
    puts("}");
    return 0;
}

/* ---- sink: the far end of tunnels ---------------------------------------- */

/*
 * Understands, byte by byte after the connection stands:
 *   PING          answers `p`
 *   SEND<16 hex>  answers with that many pattern bytes
 *   CONNECT ...   a whole head, answered 200: for a proxy that passes CONNECT
 *                 on instead of answering it
 */
struct peer {
    int fd;
    char in[HEAD_MAX];
    size_t in_length;
    uint64_t left, offset; /* pattern bytes still to send, and the place */
};

/* Acts on what has been read. False when the connection must close. */
static bool act(struct peer *p)
{
    size_t at = 0;
    while (at < p->in_length && p->left == 0) {
        char *in = p->in + at;
        size_t rest = p->in_length - at;
        if (*in == PING[0]) {
            if (send(p->fd, "p", 1, MSG_NOSIGNAL) != 1)
                return false;
            at += 1;
        } else if (*in == SEND[0]) {
            if (rest < 17)
                break;
            char digits[17];
            memcpy(digits, in + 1, 16);
            digits[16] = '\0';
            p->left = strtoull(digits, NULL, 16);
            p->offset = 0;
            at += 17;
        } else if (*in == 'C') {
            char *end = memmem(in, rest, "\r\n\r\n", 4);
            if (!end)
                break;
            static const char ok[] = "HTTP/1.1 200 OK\r\n\r\n";
            if (send(p->fd, ok, sizeof ok - 1, MSG_NOSIGNAL) != sizeof ok - 1)
                return false;
            at += (size_t)(end - in) + 4;
        } else {
            return false;
        }
    }
    memmove(p->in, p->in + at, p->in_length - at);
    p->in_length -= at;
    return true;
}

static bool serve(struct peer *p, uint32_t events, int epoll)
{
    if (events & EPOLLIN) {
        ssize_t n = recv(p->fd, p->in + p->in_length, sizeof p->in - p->in_length, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN))
            return false;
        if (n > 0)
            p->in_length += (size_t)n;
        if (!act(p))
            return false;
    }
    for (int writes = 0; writes < 4 && p->left > 0; writes++) {
        size_t want = p->left < CHUNK ? (size_t)p->left : CHUNK;
        ssize_t n = send(p->fd, pattern + p->offset % CHUNK, want, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0)
            return false;
        p->left -= (uint64_t)n;
        p->offset += (uint64_t)n;
        if (p->left == 0 && !act(p))
            return false;
    }
    watch(epoll, EPOLL_CTL_MOD, p->fd, p->left > 0 ? EPOLLOUT : EPOLLIN, p);
    return true;
}

static int run_sink(void)
{
    int listener = listen_anywhere(), epoll = new_epoll();
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    for (;;) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct peer *p = events[i].data.ptr;
            if (p) {
                if (!serve(p, events[i].events, epoll)) {
                    close(p->fd);
                    free(p);
                }
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                int on = 1;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                struct peer *peer = calloc(1, sizeof *peer);
                if (!peer)
                    die("out of memory");
                peer->fd = fd;
                watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, peer);
            }
        }
    }
}

/* ---- relay: the least a tunnel can cost ---------------------------------- */

/*
 * Two sockets and a 64 KiB buffer each way, allocated when it is first used and
 * freed when it is empty, so that an idle connection costs a relay next to
 * nothing: the strictest measure for a proxy's idle tunnels too.
 */
struct side {
    struct relayed *of;
    int fd;
    bool ended;             /* the peer of this side has sent its last */
    uint32_t watched;       /* what epoll is asked for, so as not to ask again */
    unsigned char *buffer; /* read from this side, for the other */
    size_t from, to;
};

struct relayed {
    struct side a, b;
    bool dead;
    struct relayed *next_dead;
};

/* Moves bytes from one side to the other until one of them has to wait. */
static bool pump(struct side *in, struct side *out)
{
    for (int turns = 0; turns < 8; turns++) {
        if (in->from == in->to && !in->ended) {
            if (!in->buffer && !(in->buffer = malloc(CHUNK)))
                die("out of memory");
            ssize_t n = recv(in->fd, in->buffer, CHUNK, 0);
            if (n < 0 && errno == EAGAIN)
                break;
            if (n < 0)
                return false;
            in->from = 0;
            in->to = (size_t)n;
            if (n == 0) {
                in->ended = true;
                shutdown(out->fd, SHUT_WR);
            }
        }
        if (in->from == in->to)
            break;
        ssize_t n = send(out->fd, in->buffer + in->from, in->to - in->from, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0)
            return false;
        in->from += (size_t)n;
    }
    if (in->from == in->to) {
        free(in->buffer);
        in->buffer = NULL;
        in->from = in->to = 0;
    }
    return true;
}

static void rewatch(struct side *side, struct side *other, int epoll)
{
    uint32_t events = 0;
    if (!side->ended && side->from == side->to)
        events |= EPOLLIN;
    if (other->from < other->to)
        events |= EPOLLOUT;
    if (events != side->watched)
        watch(epoll, EPOLL_CTL_MOD, side->fd, events, side);
    side->watched = events;
}

static int run_relay(const struct options *o)
{
    int listener = listen_anywhere(), epoll = new_epoll();
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    for (;;) {
        struct epoll_event events[EVENTS];
        struct relayed *dead = NULL;
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct side *side = events[i].data.ptr;
            if (side) {
                struct relayed *r = side->of;
                if (r->dead)
                    continue;
                struct side *other = side == &r->a ? &r->b : &r->a;
                uint32_t e = events[i].events;
                bool gone = e & (EPOLLERR | EPOLLHUP);
                if (((gone || e & EPOLLIN) && !pump(side, other)) ||
                    ((gone || e & EPOLLOUT) && !pump(other, side)) ||
                    (r->a.ended && r->b.ended && r->a.from == r->a.to && r->b.from == r->b.to)) {
                    /* Freed after this turn: its other side may have an event too. */
                    r->dead = true;
                    r->next_dead = dead;
                    dead = r;
                    continue;
                }
                rewatch(&r->a, &r->b, epoll);
                rewatch(&r->b, &r->a, epoll);
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                int on = 1;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                struct relayed *r = calloc(1, sizeof *r);
                if (!r)
                    die("out of memory");
                r->a = (struct side){.of = r, .fd = fd};
                r->b = (struct side){.of = r, .fd = dial(o->target), .watched = EPOLLOUT};
                /* The far side first becomes writable; then the pump begins. */
                watch(epoll, EPOLL_CTL_ADD, r->a.fd, 0, &r->a);
                watch(epoll, EPOLL_CTL_ADD, r->b.fd, EPOLLOUT, &r->b);
            }
        }
        while (dead) {
            struct relayed *r = dead;
            dead = r->next_dead;
            close(r->a.fd);
            close(r->b.fd);
            free(r->a.buffer);
            free(r->b.buffer);
            free(r);
        }
    }
}

/* ---- the command line ------------------------------------------------------ */

static struct options parse(int argc, char **argv)
{
    struct options o = {.header = "", .connections = 1, .seconds = 1, .rate = 1000};
    for (int i = 2; i < argc; i++) {
        const char *name = argv[i];
        if (strcmp(name, "--direct") == 0) {
            o.direct = true;
            continue;
        }
        if (i + 1 == argc)
            die("%s needs a value", name);
        const char *value = argv[++i];
        if (strcmp(name, "--proxy") == 0)
            o.proxy = atoi(value);
        else if (strcmp(name, "--target") == 0)
            o.target = atoi(value);
        else if (strcmp(name, "--header") == 0)
            o.header = value;
        else if (strcmp(name, "--path") == 0)
            o.path = value;
        else if (strcmp(name, "--connections") == 0)
            o.connections = atoi(value);
        else if (strcmp(name, "--seconds") == 0)
            o.seconds = atof(value);
        else if (strcmp(name, "--rate") == 0)
            o.rate = atof(value);
        else if (strcmp(name, "--bytes") == 0)
            o.bytes = strtoull(value, NULL, 10);
        else
            die("unknown option %s", name);
    }
    return o;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    struct options o = parse(argc, argv);
    /* Whoever started this and died takes it along. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    fill_pattern();
    bool far_end = strcmp(mode, "sink") == 0 || strcmp(mode, "relay") == 0;
    if (!far_end && (o.proxy <= 0 || o.target <= 0 || o.connections <= 0))
        die("write: load setup|bulk|idle|latency --proxy PORT --target PORT --connections N ...");
    if (strcmp(mode, "sink") == 0)
        return run_sink();
    if (strcmp(mode, "relay") == 0)
        return run_relay(&o);
    if (strcmp(mode, "setup") == 0)
        return run_setup(&o);
    if (strcmp(mode, "bulk") == 0)
        return run_bulk(&o);
    if (strcmp(mode, "idle") == 0)
        return run_idle(&o);
    if (strcmp(mode, "latency") == 0)
        return run_latency(&o);
    die("unknown mode \"%s\": write sink, relay, setup, bulk, idle or latency", mode);
}
