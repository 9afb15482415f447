/* Works on a file system: writes files of changing size under new names, puts each in another's place, removes some, and
   reads what is there past the cache, for ever. Told to end (SIGTERM) it reads all of it once more and prints
   "FILES ok COUNT"; what is wrong ends it with "FILES FAILED" and why. Argument: a folder, which is empty. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { FILES = 64, WORDS_MAX = 16384, PAUSE_NS = 20000000 };

static volatile sig_atomic_t ends;
/* Which turn wrote a file last; 0: there is none. */
static uint64_t turns[FILES], words[WORDS_MAX];

static void end(int number)
{
    ends = number;
}

static void fail(const char *what, uint64_t file)
{
    printf("FILES FAILED %s %lu: %s\n", what, (unsigned long)file, strerror(errno));
    exit(1);
}

static uint64_t mix(uint64_t value)
{
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    return value ^ value >> 27;
}

/* From a word to 128 KiB, as the turn says. */
static size_t count_of(uint64_t turn)
{
    return mix(turn) % WORDS_MAX + 1;
}

static const char *name(uint64_t file)
{
    static char text[32];
    snprintf(text, sizeof text, "%lu/%lu", (unsigned long)(file % 4), (unsigned long)file);
    return text;
}

static void put(uint64_t file, uint64_t turn)
{
    size_t bytes = count_of(turn) * 8;
    for (size_t word = 0; word < count_of(turn); word++) words[word] = mix(turn << 20 | word);
    int line = open("new", O_CREAT | O_TRUNC | O_WRONLY, 0644);
    if (line < 0 || write(line, words, bytes) != (ssize_t)bytes) fail("write", file);
    if (turn % 4 == 0 && fsync(line)) fail("flush", file);
    close(line);
    if (rename("new", name(file))) fail("rename", file);
    turns[file] = turn;
}

static void look(uint64_t file)
{
    errno = 0;
    size_t bytes = count_of(turns[file]) * 8;
    int line = open(name(file), O_RDONLY);
    if (!turns[file]) {
        if (line >= 0) fail("remains", file);
        return;
    }
    /* What is on the disk already is read from there. */
    if (line < 0 || posix_fadvise(line, 0, 0, POSIX_FADV_DONTNEED)) fail("open", file);
    if (read(line, words, sizeof words) != (ssize_t)bytes) fail("size", file);
    for (size_t word = 0; word < bytes / 8; word++)
        if (words[word] != mix(turns[file] << 20 | word)) fail("content", file);
    close(line);
}

int main(int count, char **arguments)
{
    if (count != 2 || chdir(arguments[1])) return 2;
    for (const char *folder = "0123"; *folder; folder++)
        if (mkdir((char[]){ *folder, 0 }, 0755)) return 1;
    setvbuf(stdout, 0, _IOLBF, 0);
    signal(SIGTERM, end);
    printf("FILES ready\n");
    uint64_t turn = 1;
    for (; !ends; turn++) {
        uint64_t file = mix(turn * 3) % FILES;
        put(file, turn);
        look(mix(turn * 5) % FILES);
        file = mix(turn * 7) % FILES;
        if (turn % 5 == 0 && turns[file]) {
            if (unlink(name(file))) fail("remove", file);
            turns[file] = 0;
        }
        nanosleep(&(struct timespec){ 0, PAUSE_NS }, 0);
    }
    for (uint64_t file = 0; file < FILES; file++) look(file);
    printf("FILES ok %lu\n", (unsigned long)(turn - 1));
    return 0;
}
