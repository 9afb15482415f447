/* Times operations that a hypervisor may intercept or that its page tables slow down, from user space of a guest.
   Prints "BENCH name value"; the unit is TSC cycles, the best of several rounds. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static inline uint64_t tsc(void)
{
    uint32_t low, high;
    asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static inline void cpuid(void)
{
    uint32_t a = 0, b, c = 0, d;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
}

#define ROUNDS 7
#define TIME(name, count, operation)                                             \
    do {                                                                         \
        uint64_t best = UINT64_MAX;                                              \
        for (int round = 0; round < ROUNDS; round++) {                           \
            uint64_t time = tsc();                                               \
            for (int i = 0; i < (count); i++) { operation; }                     \
            time = tsc() - time;                                                 \
            if (time < best) best = time;                                        \
        }                                                                        \
        printf("BENCH %s %.1f\n", name, (double)best / (count));                 \
    } while (0)

int main(void)
{
    const size_t size = 64 << 20, page = 4096;
    TIME("cpuid_exit_cycles", 1000, cpuid());
    TIME("getppid_cycles", 10000, getppid());
    char *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 1;
    uint64_t time = tsc();
    for (size_t i = 0; i < size; i += page) memory[i] = 1;
    printf("BENCH first_touch_cycles_per_page %.1f\n", (double)(tsc() - time) / (double)(size / page));
    TIME("touch_16k_pages_cycles", 1, for (size_t i = 0; i < size; i += page) memory[i]++);
    return 0;
}
