/* Measures a disk past the page cache: sequential 1 MiB reads and writes, random 4 KiB reads at queue depths 1 and 32
   (Linux native asynchronous I/O). Prints "BENCH name value". Overwrites the disk's first 64 MiB. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, CHUNK = 1 << 20, CHUNKS = 64, DEPTH_MAX = 32 };
static const double RANDOM_SECONDS = 2.0;

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

static void sequential(int disk, char *buffer, int chunks)
{
    double time = now();
    for (int i = 0; i < chunks; i++)
        if (pwrite(disk, buffer, CHUNK, (off_t)i * CHUNK) != CHUNK) die("write");
    fsync(disk);
    time = now() - time;
    printf("BENCH disk_write_1M_MBps %.1f\n", (double)chunks * CHUNK / time / 1e6);
    time = now();
    for (int i = 0; i < chunks; i++)
        if (pread(disk, buffer, CHUNK, (off_t)i * CHUNK) != CHUNK) die("read");
    time = now() - time;
    printf("BENCH disk_read_1M_MBps %.1f\n", (double)chunks * CHUNK / time / 1e6);
}

static off_t random_block(unsigned *seed, int chunks)
{
    *seed = *seed * 1103515245u + 12345u;
    return (off_t)((*seed >> 8) % (unsigned)(chunks * (CHUNK / BLOCK))) * BLOCK;
}

static void random_reads(int disk, char *buffer, int chunks, int depth)
{
    aio_context_t context = 0;
    struct iocb requests[DEPTH_MAX], *list[DEPTH_MAX];
    struct io_event events[DEPTH_MAX];
    unsigned seed = 1;
    long done = 0;
    if (syscall(SYS_io_setup, DEPTH_MAX, &context) < 0) die("io_setup");
    memset(requests, 0, sizeof requests);
    for (int i = 0; i < depth; i++) {
        requests[i] = (struct iocb){ .aio_fildes = (uint32_t)disk, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_nbytes = BLOCK,
            .aio_buf = (uint64_t)(uintptr_t)(buffer + i * BLOCK), .aio_offset = random_block(&seed, chunks), .aio_data = (uint64_t)i };
        list[i] = &requests[i];
    }
    double start = now();
    if (syscall(SYS_io_submit, context, (long)depth, list) != depth) die("io_submit");
    while (now() - start < RANDOM_SECONDS) {
        long ready = syscall(SYS_io_getevents, context, 1L, (long)depth, events, NULL);
        if (ready < 1) die("io_getevents");
        for (long i = 0; i < ready; i++) {
            if (events[i].res != BLOCK) die("random read");
            list[i] = &requests[events[i].data];
            list[i]->aio_offset = random_block(&seed, chunks);
        }
        done += ready;
        if (syscall(SYS_io_submit, context, ready, list) != ready) die("io_submit");
    }
    double time = now() - start;
    printf("BENCH disk_random_4k_qd%d_iops %.1f\n", depth, (double)done / time);
    syscall(SYS_io_destroy, context);
}

int main(int count, char **arguments)
{
    char *buffer;
    uint64_t bytes = 0;
    if (count != 2) return 2;
    int disk = open(arguments[1], O_RDWR | O_DIRECT);
    if (disk < 0) die(arguments[1]);
    if (posix_memalign((void **)&buffer, BLOCK, CHUNK)) return 1;
    memset(buffer, 0x5a, CHUNK);
    if (ioctl(disk, BLKGETSIZE64, &bytes) < 0) die("size");
    int chunks = bytes / CHUNK < CHUNKS ? (int)(bytes / CHUNK) : CHUNKS;
    if (chunks < 1) return 1;
    sequential(disk, buffer, chunks);
    random_reads(disk, buffer, chunks, 1);
    random_reads(disk, buffer, chunks, DEPTH_MAX);
    return 0;
}
