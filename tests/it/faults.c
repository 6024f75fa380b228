/* A disk that fails on command: loaded before the C library (LD_PRELOAD), steered by a file of 64-bit words that the test writes.
 *
 * Only files below $FAULTS_DIR are touched. A failed fsync loses for good what it was to write, as a kernel's does that drops the
 * pages: the ranges go to $FAULTS_LOST, for the test to take out of the files when the "power" is cut, or out of them at once. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Of each fault: the errno, and how often (-1: for ever, 0: never). */
enum { SYNC, SYNC_TIMES, WRITE, WRITE_TIMES, OPEN, OPEN_TIMES, READ, READ_TIMES, SYNC_MS, READ_MS, DROP, STRUCK, WORDS };

static _Atomic int64_t *word;
static const char *dir, *lost;
static size_t dir_len;

/* Of each file descriptor: whether it is below the directory, holds a table, and what was written since it was last synced. */
#define FDS 4096
static struct { _Atomic char ours, table; off_t low, high; char path[512]; } file[FDS];

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    const char *control = getenv("FAULTS_CONTROL");
    dir = getenv("FAULTS_DIR");
    lost = getenv("FAULTS_LOST");
    if (!control || !dir || !lost) return;
    dir_len = strlen(dir);
    int fd = (int)open(control, O_RDWR);
    void *at = fd < 0 ? MAP_FAILED : mmap(NULL, WORDS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) { fprintf(stderr, "faults: no control file\n"); abort(); }
    word = at;
}

static int ours(int fd) { return word && fd >= 0 && fd < FDS && file[fd].ours; }

static int strikes(int fault) {
    int64_t left = word[fault + 1];
    while (left > 0 && !atomic_compare_exchange_weak(&word[fault + 1], &left, left - 1)) {}
    if (left == 0) return 0;
    word[STRUCK]++;
    errno = (int)word[fault];
    return 1;
}

/* Ends early when the word is 0 again. */
static void pause_for(int which) {
    struct timespec t = { 0, 1000000 };
    for (int64_t ms = word[which]; ms > 0 && word[which]; ms--) nanosleep(&t, NULL);
}

/* Opening to read what is there is no fault of a disk without room for files; both kinds are struck alike here. */
static int refuses(const char *path) {
    return word && strncmp(path, dir, dir_len) == 0 && strikes(OPEN);
}

/* What is begun anew under a name has nothing to do with what was lost there. */
static void forget(const char *path) {
    int saved = errno;
    FILE *out = word[STRUCK] ? fopen(lost, "a") : NULL;
    if (out) {
        fprintf(out, "0 0 %s\n", path);
        fclose(out);
    }
    errno = saved;
}

static int opened(int fd, const char *path, int flags) {
    if (word && fd >= 0 && flags & O_TRUNC && strncmp(path, dir, dir_len) == 0) forget(path);
    if (word && fd >= 0 && fd < FDS) {
        size_t len = strlen(path);
        file[fd].low = file[fd].high = 0;
        file[fd].table = len > 4 && strcmp(path + len - 4, ".sst") == 0;
        snprintf(file[fd].path, sizeof file[fd].path, "%s", path);
        file[fd].ours = strncmp(path, dir, dir_len) == 0;
    }
    return fd;
}

#define OPEN_LIKE(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return refuses(path) ? -1 : opened(real(path, flags, mode), path, flags); \
    }
OPEN_LIKE(open)
OPEN_LIKE(open64)

int close(int fd) {
    REAL(close);
    if (word && fd >= 0 && fd < FDS) file[fd].ours = 0;
    return real(fd);
}

static void wrote(int fd, off_t at, ssize_t n) {
    if (n <= 0) return;
    if (file[fd].high == 0 || at < file[fd].low) file[fd].low = at;
    if (at + n > file[fd].high) file[fd].high = at + n;
}

ssize_t write(int fd, const void *bytes, size_t n) {
    REAL(write);
    if (!ours(fd)) return real(fd, bytes, n);
    if (strikes(WRITE)) return -1;
    off_t at = lseek(fd, 0, SEEK_CUR);
    ssize_t done = real(fd, bytes, n);
    wrote(fd, at, done);
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(writev);
    return ours(fd) && strikes(WRITE) ? -1 : real(fd, parts, n);
}

#define PWRITE_LIKE(name, offset) \
    ssize_t name(int fd, const void *bytes, size_t n, offset at) { \
        REAL(name); \
        if (!ours(fd)) return real(fd, bytes, n, at); \
        if (strikes(WRITE)) return -1; \
        ssize_t done = real(fd, bytes, n, at); \
        wrote(fd, at, done); \
        return done; \
    }
PWRITE_LIKE(pwrite, off_t)
PWRITE_LIKE(pwrite64, off64_t)

static int reads_fail(int fd) {
    if (!ours(fd) || !file[fd].table) return 0;
    pause_for(READ_MS);
    return strikes(READ);
}

ssize_t read(int fd, void *bytes, size_t n) {
    REAL(read);
    return reads_fail(fd) ? -1 : real(fd, bytes, n);
}

#define PREAD_LIKE(name, offset) \
    ssize_t name(int fd, void *bytes, size_t n, offset at) { \
        REAL(name); \
        return reads_fail(fd) ? -1 : real(fd, bytes, n, at); \
    }
PREAD_LIKE(pread, off_t)
PREAD_LIKE(pread64, off64_t)

static void lose(int fd) {
    int saved = errno;
    if (file[fd].high > file[fd].low) {
        FILE *out = fopen(lost, "a");
        if (out) {
            fprintf(out, "%lld %lld %s\n", (long long)file[fd].low, (long long)file[fd].high, file[fd].path);
            fclose(out);
        }
        if (word[DROP]) {
            static const char zeros[65536];
            static __typeof__(pwrite64) *real_write;
            static __typeof__(open64) *real_open;
            if (!real_write) real_write = (__typeof__(pwrite64) *)dlsym(RTLD_NEXT, "pwrite64");
            if (!real_open) real_open = (__typeof__(open64) *)dlsym(RTLD_NEXT, "open64");
            int other = real_open(file[fd].path, O_WRONLY);
            for (off_t at = file[fd].low; other >= 0 && at < file[fd].high;) {
                off_t n = file[fd].high - at;
                ssize_t done = real_write(other, zeros, n < (off_t)sizeof zeros ? (size_t)n : sizeof zeros, at);
                if (done <= 0) break;
                at += done;
            }
            if (other >= 0) close(other);
        }
    }
    /* The kernel takes them for clean now: the next fsync says that all is well. */
    file[fd].low = file[fd].high = 0;
    errno = saved;
}

#define SYNC_LIKE(name) \
    int name(int fd) { \
        REAL(name); \
        if (!ours(fd)) return real(fd); \
        pause_for(SYNC_MS); \
        if (strikes(SYNC)) { lose(fd); return -1; } \
        int done = real(fd); \
        if (done == 0) file[fd].low = file[fd].high = 0; \
        return done; \
    }
SYNC_LIKE(fsync)
SYNC_LIKE(fdatasync)
