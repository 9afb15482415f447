/* A mix that keeps several processors busy with each other, as hackbench does: pairs of processes exchange messages through
   pipes, and threads of one process map and unmap memory, which its other processors must forget. Prints the seconds. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAIRS = 4, MESSAGES = 1000, THREADS = 2, MAPPINGS = 300, BYTES = 100, PAGES = 8 };

static void exchange(int in, int out, int first) {
    char message[BYTES] = {0};
    for (int i = 0; i < MESSAGES; i++) {
        if (first && write(out, message, BYTES) != BYTES) exit(1);
        for (ssize_t got = 0, more; got < BYTES; got += more)
            if ((more = read(in, message + got, BYTES - got)) <= 0) exit(1);
        if (!first && write(out, message, BYTES) != BYTES) exit(1);
    }
    exit(0);
}

static void *map(void *unused) {
    for (int i = 0; i < MAPPINGS; i++) {
        char *memory = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) exit(1);
        for (int page = 0; page < PAGES; page++) memory[page * 4096] = 1;
        munmap(memory, PAGES * 4096);
    }
    return unused;
}

int main(void) {
    struct timespec start, end;
    int failed = 0, status;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int pair = 0; pair < PAIRS; pair++) {
        int there[2], back[2];
        if (pipe(there) || pipe(back)) return 1;
        if (fork() == 0) exchange(back[0], there[1], 1);
        if (fork() == 0) exchange(there[0], back[1], 0);
        close(there[0]); close(there[1]); close(back[0]); close(back[1]);
    }
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) if (pthread_create(&threads[i], NULL, map, NULL)) return 1;
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    while (wait(&status) > 0) failed |= status;
    clock_gettime(CLOCK_MONOTONIC, &end);
    if (failed) return 1;
    printf("BENCH mix_s %.3f\n", (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9);
    return 0;
}
