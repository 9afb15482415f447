/* Answers numbered requests over TCP, one connection at a time, and checks its own machine with each: memory, disk and
   order. A request is the number, 8 bytes little-endian; the answer is four such words: the number, how many were
   answered, the time of day in nanoseconds, and what is wrong (0: nothing). Number 0 checks everything that was ever
   written, and is not counted. Arguments: port, disk. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SECTOR = 512, SECTORS = 8192, PAGE = 4096, WORDS = PAGE / 8, PAGES = 1024, CHECKED = 16 };
enum { ORDER = 1, MEMORY = 2, DISK = 4 };

static uint64_t memory[PAGES][WORDS], generation[PAGES], answered, wrong;
static char *sector;
static int disk;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t pattern(uint64_t page, uint64_t word)
{
    uint64_t value = (generation[page] << 32 | page << 16 | word) * 0x9e3779b97f4a7c15u;
    return value ^ value >> 29;
}

static void fill(uint64_t page)
{
    for (uint64_t word = 0; word < WORDS; word++) memory[page][word] = pattern(page, word);
}

static void check_page(uint64_t page)
{
    for (uint64_t word = 0; word < WORDS; word++)
        if (memory[page][word] != pattern(page, word)) wrong |= MEMORY;
}

static void put_sector(uint64_t number)
{
    for (int i = 0; i < SECTOR / 8; i++) memcpy(sector + 8 * i, &number, 8);
    if (pwrite(disk, sector, SECTOR, (off_t)(number % SECTORS) * SECTOR) != SECTOR) die("write");
}

static void check_sector(uint64_t number)
{
    if (pread(disk, sector, SECTOR, (off_t)(number % SECTORS) * SECTOR) != SECTOR) die("read");
    for (int i = 0; i < SECTOR / 8; i++)
        if (memcmp(sector + 8 * i, &number, 8)) wrong |= DISK;
}

static void answer(uint64_t number)
{
    if (number != answered + 1) wrong |= ORDER;
    answered++;
    for (uint64_t i = 0; i < CHECKED; i++) check_page((number * CHECKED + i) % PAGES);
    uint64_t page = number * 7 % PAGES;
    generation[page] = number;
    fill(page);
    put_sector(number);
    if (number % 8 == 0 && fdatasync(disk)) die("flush");
    if (number > 1) check_sector(number - 1);
    if (number > 100 && number < SECTORS) check_sector(number / 2);
}

static void check_all(void)
{
    for (uint64_t page = 0; page < PAGES; page++) check_page(page);
    uint64_t first = answered > SECTORS ? answered - SECTORS + 1 : 1;
    for (uint64_t number = first; number <= answered; number++) check_sector(number);
}

static void serve(int line)
{
    uint64_t number, reply[4];
    struct timespec time;
    while (recv(line, &number, 8, MSG_WAITALL) == 8) {
        if (number) answer(number);
        else check_all();
        clock_gettime(CLOCK_REALTIME, &time);
        reply[0] = number;
        reply[1] = answered;
        reply[2] = (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
        reply[3] = wrong;
        if (write(line, reply, sizeof reply) != sizeof reply) break;
    }
    printf("SERVE ended after %lu\n", (unsigned long)answered);
    close(line);
}

int main(int count, char **arguments)
{
    const int one = 1;
    if (count != 3) return 2;
    struct sockaddr_in own = { .sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(arguments[1])) };
    setvbuf(stdout, NULL, _IOLBF, 0);
    disk = open(arguments[2], O_RDWR | O_DIRECT);
    if (disk < 0) die(arguments[2]);
    if (posix_memalign((void **)&sector, PAGE, SECTOR)) return 1;
    for (uint64_t page = 0; page < PAGES; page++) fill(page);
    int door = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (door < 0 || bind(door, (struct sockaddr *)&own, sizeof own) < 0 || listen(door, 1) < 0) die("listen");
    printf("SERVE ready\n");
    for (;;) {
        int line = accept(door, NULL, NULL);
        if (line < 0) die("accept");
        setsockopt(line, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        serve(line);
    }
}
