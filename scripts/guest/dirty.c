/* Writes to memory at a steady rate, and ticks: what live migration is measured by.
   dirty RATE      RATE in MB/s, 0 for none; a word of each page of 32 MiB of noise in turn
   dirty busy      as fast as it can; about once a second "BUSY NS": what it took each time to write so much
   With a rate, every 10 ms the pages that are due, then one '~', so that whoever watches sees for how long it stood still. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define REGION (32u << 20)
#define PAGE 4096u
#define TICK_NS 10000000L
#define SECOND_NS 1000000000u

#define BUSY_PASSES 8
#define BUSY_WORDS 8

/* So many words of each page, so many times. */
static void work(uint8_t *region, uint32_t tick)
{
    for (int pass = 0; pass < BUSY_PASSES; pass++)
        for (uint32_t page = 0; page < REGION; page += PAGE)
            for (uint32_t word = 0; word < BUSY_WORDS; word++)
                *(volatile uint32_t *)(region + page + word * 64) = tick + pass;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* For ever. */
static void be_busy(uint8_t *region)
{
    for (uint32_t tick = 1;;) {
        uint64_t start = now_ns(), end = start, times = 0;
        for (; end < start + SECOND_NS; end = now_ns(), times++) work(region, tick++);
        printf("BUSY %lu\n", (unsigned long)((end - start) / times));
        fflush(stdout);
    }
}

int main(int count, char **words)
{
    int busy = count > 1 && !strcmp(words[1], "busy");
    long rate = count > 1 ? atol(words[1]) : 0;
    uint8_t *region = mmap(0, REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (region == MAP_FAILED) return 1;
    uint64_t noise = 88172645463325252u;
    if (rate > 0 || busy)
        for (uint64_t *at = (uint64_t *)region; at < (uint64_t *)(region + REGION); at++) {
            noise ^= noise << 13; noise ^= noise >> 7; noise ^= noise << 17;
            *at = noise;
        }
    printf("DIRTY ready\n");
    fflush(stdout);
    if (busy) be_busy(region);
    long pages = rate * 1000000 / (1000000000 / TICK_NS) / PAGE;
    uint32_t next = 0;
    for (uint32_t tick = 1;; tick++) {
        for (long page = 0; page < pages; page++) {
            *(volatile uint32_t *)(region + next) = tick;
            next = (next + PAGE) % REGION;
        }
        if (write(1, "~", 1) != 1) return 1;
        nanosleep(&(struct timespec){ 0, TICK_NS }, 0);
    }
}
