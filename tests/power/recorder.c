/* Records, in one order, every operation of a process that changes what lies under a directory. Preloaded into the server by
 * tests/power, which makes from the journal the disks that a power cut might leave.
 *
 *   RECORDER_ROOT     the directory; an absolute path without links
 *   RECORDER_JOURNAL  where to append; it is outside the directory and exists
 *   RECORDER_KILL_AT  SIGKILL to itself after so many operations (absent: never): a death between two operations
 *
 * What holds: an operation and its record are made under one lock, so the journal's order is the order in which things happened;
 * only what was done is recorded. A sync is recorded when it has returned, with the journal's length at its beginning: it speaks for
 * what was recorded before that and for nothing else. A process that dies by RECORDER_KILL_AT leaves no operation without its
 * record. Files whose names begin with LOG (RocksDB's diary, written through stdio) are left out: nothing reads them.
 *
 * Not seen: raw system calls, mmap'ed writes, io_uring, stdio. That nothing is missed is not believed but checked: the test compares
 * the journal's end with what really is there. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { CREATE = 1, WRITE, SIZE, RENAME, UNLINK, LINK, MKDIR, RMDIR, SYNC };

/* What a record begins with; `a` bytes (a path, or data) and `b` bytes (a second path) follow. */
struct head {
    uint32_t kind, a, b, zero;
    uint64_t inode, number; /* number: an offset, a size, or what a sync speaks for */
};

#define FILES 65536
static unsigned char tracked[FILES]; /* by descriptor: a file or a directory under the root */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static int journal = -1;
static uint64_t length, operations, kill_at = UINT64_MAX;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real && !(real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name))) abort()

static void fail(const char *what) {
    dprintf(2, "the recorder cannot go on: %s: %s\n", what, strerror(errno));
    abort();
}

__attribute__((constructor)) static void begin(void) {
    const char *dir = getenv("RECORDER_ROOT"), *file = getenv("RECORDER_JOURNAL"), *at = getenv("RECORDER_KILL_AT");
    if (!dir || !file) return;
    if (strlen(dir) >= sizeof root) fail("RECORDER_ROOT is too long");
    journal = open(file, O_WRONLY | O_APPEND | O_CLOEXEC);
    struct stat stat;
    if (journal < 0 || fstat(journal, &stat)) fail(file);
    length = stat.st_size;
    if (at) kill_at = strtoull(at, NULL, 10);
    strcpy(root, dir); /* last: from here on things are recorded */
}

static void record(enum kind kind, uint64_t inode, uint64_t number, const struct iovec *a, int pieces, const char *b) {
    struct head head = { .kind = kind, .inode = inode, .number = number, .b = b ? strlen(b) : 0 };
    struct iovec all[IOV_MAX];
    size_t sum = sizeof head + head.b;
    if (pieces > IOV_MAX - 2) fail("too many pieces");
    all[0] = (struct iovec){ &head, sizeof head };
    for (int i = 0; i < pieces; i++) {
        all[i + 1] = a[i];
        head.a += a[i].iov_len;
        sum += a[i].iov_len;
    }
    all[pieces + 1] = (struct iovec){ (void *)b, head.b };
    REAL(writev);
    if (real(journal, all, pieces + 2) != (ssize_t)sum) fail("writing the journal");
    length += sum;
    if (++operations >= kill_at) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

static void record_path(enum kind kind, uint64_t inode, const char *a, const char *b) {
    struct iovec path = { (void *)a, strlen(a) };
    record(kind, inode, 0, &path, 1, b);
}

/* The path with its directory resolved, if it lies under the root (or is it). */
static int within(int dir, const char *path, char out[PATH_MAX]) {
    char whole[PATH_MAX], parent[PATH_MAX];
    if (!*root || !path) return 0;
    if (*path == '/') {
        if (strlen(path) >= PATH_MAX) return 0;
        strcpy(whole, path);
    } else {
        char link[64];
        if (dir == AT_FDCWD) strcpy(link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t n = readlink(link, parent, sizeof parent - 1);
        if (n < 0) return 0;
        parent[n] = 0;
        if ((size_t)snprintf(whole, sizeof whole, "%s/%s", parent, path) >= sizeof whole) return 0;
    }
    size_t n = strlen(whole);
    while (n > 1 && whole[n - 1] == '/') whole[--n] = 0;
    char *name = strrchr(whole, '/');
    if (!name) return 0;
    *name++ = 0;
    if (!realpath(*whole ? whole : "/", parent)) return 0;
    if ((size_t)snprintf(out, PATH_MAX, "%s/%s", parent, name) >= PATH_MAX) return 0;
    size_t r = strlen(root);
    return !strncmp(out, root, r) && (!out[r] || out[r] == '/') && strncmp(name, "LOG", 3);
}

static int is_tracked(int fd) { return fd >= 0 && fd < FILES && tracked[fd]; }
static void track(int fd, int is) { if (fd >= 0 && fd < FILES) tracked[fd] = is; }

static struct stat of(int fd) {
    struct stat stat;
    if (fstat(fd, &stat)) fail("fstat");
    return stat;
}

/* --- opening and closing --- */

static int opened(int (*real)(int, const char *, int, mode_t), int dir, const char *path, int flags, mode_t mode) {
    char whole[PATH_MAX];
    if (!within(dir, path, whole)) {
        int fd = real(dir, path, flags, mode);
        if (fd >= 0) track(fd, 0);
        return fd;
    }
    pthread_mutex_lock(&lock);
    struct stat before;
    int existed = !fstatat(dir, path, &before, 0);
    int fd = real(dir, path, flags, mode);
    int error = errno;
    if (fd >= 0) {
        struct stat now = of(fd);
        track(fd, 1);
        if (!existed && S_ISREG(now.st_mode)) record_path(CREATE, now.st_ino, whole, NULL);
        else if (existed && (flags & O_TRUNC) && before.st_size) record(SIZE, now.st_ino, 0, NULL, 0, NULL);
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

static int really_open(int dir, const char *path, int flags, mode_t mode) {
    REAL(openat);
    return real(dir, path, flags, mode);
}

#define MODE(flags, mode) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list list; \
        va_start(list, flags); \
        mode = va_arg(list, mode_t); \
        va_end(list); \
    }

int open(const char *path, int flags, ...) { MODE(flags, mode) return opened(really_open, AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, mode) return opened(really_open, AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) {
    MODE(flags, mode)
    return opened(really_open, dir, path, flags, mode);
}
int openat64(int dir, const char *path, int flags, ...) {
    MODE(flags, mode)
    return opened(really_open, dir, path, flags, mode);
}
int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int __open_2(const char *path, int flags) { return open(path, flags); }
int __open64_2(const char *path, int flags) { return open(path, flags); }

int close(int fd) {
    REAL(close);
    track(fd, 0);
    return real(fd);
}

static int copied(int from, int to) {
    if (to >= 0) track(to, is_tracked(from));
    return to;
}
int dup(int fd) { REAL(dup); return copied(fd, real(fd)); }
int dup2(int fd, int to) { REAL(dup2); return copied(fd, real(fd, to)); }
int dup3(int fd, int to, int flags) { REAL(dup3); return copied(fd, real(fd, to, flags)); }
static int controlled(int fd, int command, void *argument) {
    REAL(fcntl);
    int result = real(fd, command, argument);
    return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? copied(fd, result) : result;
}
#define CONTROL(name) \
    int name(int fd, int command, ...) { \
        va_list list; \
        va_start(list, command); \
        void *argument = va_arg(list, void *); \
        va_end(list); \
        return controlled(fd, command, argument); \
    }
CONTROL(fcntl)
CONTROL(fcntl64)

/* --- data --- */

/* Records what of `pieces` was written. */
static void wrote(int fd, uint64_t offset, const struct iovec *pieces, int count, size_t written) {
    struct iovec part[IOV_MAX];
    int n = 0;
    for (; n < count && written; n++) {
        part[n] = pieces[n];
        if (part[n].iov_len > written) part[n].iov_len = written;
        written -= part[n].iov_len;
    }
    record(WRITE, of(fd).st_ino, offset, part, n, NULL);
}

/* `at` is -1 for the descriptor's own place. */
static ssize_t written(int fd, const struct iovec *pieces, int count, off_t at) {
    REAL(pwritev);
    static ssize_t (*plain)(int, const struct iovec *, int);
    if (!plain) plain = (ssize_t (*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "writev");
    if (!is_tracked(fd)) return at < 0 ? plain(fd, pieces, count) : real(fd, pieces, count, at);
    pthread_mutex_lock(&lock);
    off_t offset = at;
    if (fcntl(fd, F_GETFL) & O_APPEND) offset = of(fd).st_size;
    else if (at < 0) offset = lseek(fd, 0, SEEK_CUR);
    ssize_t n = at < 0 ? plain(fd, pieces, count) : real(fd, pieces, count, at);
    int error = errno;
    if (n > 0) wrote(fd, offset, pieces, count, n);
    pthread_mutex_unlock(&lock);
    errno = error;
    return n;
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (!is_tracked(fd)) return real(fd, data, size);
    return written(fd, &(struct iovec){ (void *)data, size }, 1, -1);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(pwrite);
    if (!is_tracked(fd)) return real(fd, data, size, at);
    return written(fd, &(struct iovec){ (void *)data, size }, 1, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return pwrite(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *pieces, int count) { return written(fd, pieces, count, -1); }
ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t at) { return written(fd, pieces, count, at); }
ssize_t pwritev64(int fd, const struct iovec *pieces, int count, off64_t at) { return written(fd, pieces, count, at); }

/* An operation on a descriptor after which the file may have another size. */
#define SIZED(fd, call) \
    if (!is_tracked(fd)) return call; \
    pthread_mutex_lock(&lock); \
    off_t before = of(fd).st_size; \
    int result = call, error = errno; \
    struct stat now = of(fd); \
    if (now.st_size != before) record(SIZE, now.st_ino, now.st_size, NULL, 0, NULL); \
    pthread_mutex_unlock(&lock); \
    errno = error; \
    return result

int ftruncate(int fd, off_t size) { REAL(ftruncate); SIZED(fd, real(fd, size)); }
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }
int posix_fallocate(int fd, off_t at, off_t size) { REAL(posix_fallocate); SIZED(fd, real(fd, at, size)); }
int posix_fallocate64(int fd, off64_t at, off64_t size) { return posix_fallocate(fd, at, size); }
int fallocate(int fd, int mode, off_t at, off_t size) {
    REAL(fallocate);
    /* FALLOC_FL_KEEP_SIZE (1) changes nothing that is read; what changes data is not written down, so it must not be used. */
    if (is_tracked(fd) && mode & ~1) { errno = EOPNOTSUPP; return -1; }
    SIZED(fd, real(fd, mode, at, size));
}
int fallocate64(int fd, int mode, off64_t at, off64_t size) { return fallocate(fd, mode, at, size); }
int truncate(const char *path, off_t size) {
    int fd = open(path, O_WRONLY | O_CLOEXEC), result, error;
    if (fd < 0) return -1;
    result = ftruncate(fd, size);
    error = errno;
    close(fd);
    errno = error;
    return result;
}
int truncate64(const char *path, off64_t size) { return truncate(path, size); }

/* --- syncs: sync_file_range and syncfs promise nothing that is relied on here, so they are no syncs --- */

#define SYNCED(fd, call) \
    if (!is_tracked(fd)) return call; \
    pthread_mutex_lock(&lock); \
    uint64_t upto = length; \
    pthread_mutex_unlock(&lock); \
    int result = call, error = errno; \
    if (!result) { \
        pthread_mutex_lock(&lock); \
        record(SYNC, of(fd).st_ino, upto, NULL, 0, NULL); \
        pthread_mutex_unlock(&lock); \
    } \
    errno = error; \
    return result

int fsync(int fd) { REAL(fsync); SYNCED(fd, real(fd)); }
int fdatasync(int fd) { REAL(fdatasync); SYNCED(fd, real(fd)); }

/* --- names --- */

static int renamed(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    REAL(renameat2);
    char a[PATH_MAX], b[PATH_MAX];
    int is_from = within(from_dir, from, a), is_to = within(to_dir, to, b);
    if (!is_from || !is_to) return real(from_dir, from, to_dir, to, flags);
    pthread_mutex_lock(&lock);
    int result = real(from_dir, from, to_dir, to, flags), error = errno;
    if (!result) record_path(RENAME, 0, a, b);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_dir, const char *from, int to_dir, const char *to) { return renamed(from_dir, from, to_dir, to, 0); }
int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    return renamed(from_dir, from, to_dir, to, flags);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    REAL(linkat);
    char a[PATH_MAX], b[PATH_MAX];
    if (!within(from_dir, from, a) || !within(to_dir, to, b)) return real(from_dir, from, to_dir, to, flags);
    pthread_mutex_lock(&lock);
    int result = real(from_dir, from, to_dir, to, flags), error = errno;
    if (!result) record_path(LINK, 0, a, b);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int dir, const char *path, int flags) {
    REAL(unlinkat);
    char whole[PATH_MAX];
    if (!within(dir, path, whole)) return real(dir, path, flags);
    pthread_mutex_lock(&lock);
    int result = real(dir, path, flags), error = errno;
    if (!result) record_path(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, whole, NULL);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    int result = unlinkat(AT_FDCWD, path, 0);
    return result && (errno == EISDIR || errno == EPERM) ? unlinkat(AT_FDCWD, path, AT_REMOVEDIR) : result;
}

int mkdirat(int dir, const char *path, mode_t mode) {
    REAL(mkdirat);
    char whole[PATH_MAX];
    if (!within(dir, path, whole)) return real(dir, path, mode);
    pthread_mutex_lock(&lock);
    int result = real(dir, path, mode), error = errno;
    struct stat stat;
    if (!result && fstatat(dir, path, &stat, 0)) fail(whole);
    if (!result) record_path(MKDIR, stat.st_ino, whole, NULL);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
