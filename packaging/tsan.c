/* Linked into what runs under the thread sanitizer (packaging/sanitize.sh), in place of the C library's fcntl.
 *
 * The sanitizer knows that whoever is told of a descriptor by epoll_wait comes after whoever added it by epoll_ctl, if both name the same
 * epoll descriptor, or copies that dup made. mio, below tokio, waits by one descriptor and adds by a copy of it, which Rust's library makes
 * by fcntl(F_DUPFD_CLOEXEC): of that the sanitizer knows nothing, and calls each first readiness of a socket a race with the making of what
 * tokio keeps of it. So such a copy is made by dup here, of which it knows. Suppressing these reports would hide the driver's true races. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <unistd.h>

int __real_fcntl(int fd, int command, ...);

int __wrap_fcntl(int fd, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (command != F_DUPFD_CLOEXEC) return __real_fcntl(fd, command, argument);
    int copy = dup(fd);
    /* Not atomic with the copy: a process started in between inherits it, which at worst keeps a socket open for as long as that lives. */
    if (copy >= 0 && __real_fcntl(copy, F_SETFD, FD_CLOEXEC) < 0) {
        int error = errno;
        close(copy);
        errno = error;
        return -1;
    }
    return copy;
}
