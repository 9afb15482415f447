/* Checks memory: fills MIB mebibytes with a pattern that differs from word to word, and goes round for ever, each page
   looked at and then written anew. Told to end (SIGTERM) it looks at all of it once more and prints "PATTERN ok ROUNDS";
   what is wrong ends it with "PATTERN FAILED PAGE". Argument: MIB. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PAUSE_PAGES = 64, PAUSE_NS = 2000000 };

static volatile sig_atomic_t ends;

static void end(int number)
{
    ends = number;
}

static uint64_t pattern(uint64_t round, uint64_t at)
{
    uint64_t value = (round << 40 ^ at) * 0x9e3779b97f4a7c15u;
    return value ^ value >> 29;
}

static void fill(uint64_t (*memory)[WORDS], uint64_t page, uint64_t round)
{
    for (uint64_t word = 0; word < WORDS; word++) memory[page][word] = pattern(round, page * WORDS + word);
}

static void check(uint64_t (*memory)[WORDS], uint64_t page, uint64_t round)
{
    for (uint64_t word = 0; word < WORDS; word++) {
        if (memory[page][word] == pattern(round, page * WORDS + word)) continue;
        printf("PATTERN FAILED %lu\n", (unsigned long)page);
        exit(1);
    }
}

int main(int count, char **words)
{
    if (count != 2) return 2;
    uint64_t pages = strtoul(words[1], 0, 10) * ((1 << 20) / PAGE), round = 1;
    uint64_t (*memory)[WORDS] = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 1;
    setvbuf(stdout, 0, _IOLBF, 0);
    signal(SIGTERM, end);
    for (uint64_t page = 0; page < pages; page++) fill(memory, page, round);
    printf("PATTERN ready\n");
    for (; !ends; round++)
        for (uint64_t page = 0; page < pages; page++) {
            check(memory, page, round);
            fill(memory, page, round + 1);
            /* Others work here too, and a move is to end. */
            if (page % PAUSE_PAGES == 0) nanosleep(&(struct timespec){ 0, PAUSE_NS }, 0);
        }
    for (uint64_t page = 0; page < pages; page++) check(memory, page, round);
    printf("PATTERN ok %lu\n", (unsigned long)(round - 1));
    return 0;
}
