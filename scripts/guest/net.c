/* Measures a TCP connection to the server of `cargo xtask bench`: round trips of 64 bytes, then throughput both ways.
   The first byte sent says what the server does: 'e' echoes, 'd' discards, 's' sends. Prints "BENCH name value". */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE = 64, TRIPS = 500, CHUNK = 64 << 10 };
static const double SECONDS = 3.0;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int dial(char **arguments, char mode)
{
    struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(arguments[2])) };
    const int one = 1;
    int line = socket(AF_INET, SOCK_STREAM, 0);
    if (line < 0 || inet_pton(AF_INET, arguments[1], &server.sin_addr) != 1) die("address");
    if (connect(line, (struct sockaddr *)&server, sizeof server) < 0) die("connect");
    setsockopt(line, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (write(line, &mode, 1) != 1) die("write");
    return line;
}

static void round_trips(char **arguments)
{
    char message[MESSAGE] = { 0 };
    int line = dial(arguments, 'e');
    double start = now();
    for (int i = 0; i < TRIPS; i++) {
        if (write(line, message, MESSAGE) != MESSAGE) die("write");
        if (recv(line, message, MESSAGE, MSG_WAITALL) != MESSAGE) die("read");
    }
    printf("BENCH net_round_trip_us %.1f\n", (now() - start) / TRIPS * 1e6);
    close(line);
}

static void throughput(char **arguments, char mode, const char *name)
{
    static char chunk[CHUNK];
    int line = dial(arguments, mode);
    double start = now(), time;
    size_t bytes = 0;
    do {
        ssize_t moved = mode == 'd' ? write(line, chunk, CHUNK) : read(line, chunk, CHUNK);
        if (moved <= 0) die(name);
        bytes += (size_t)moved;
        time = now() - start;
    } while (time < SECONDS);
    printf("BENCH %s %.1f\n", name, (double)bytes / time / 1e6);
    close(line);
}

int main(int count, char **arguments)
{
    if (count != 3) return 2;
    round_trips(arguments);
    throughput(arguments, 'd', "net_send_MBps");
    throughput(arguments, 's', "net_receive_MBps");
    return 0;
}
