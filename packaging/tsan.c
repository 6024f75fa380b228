/* Linked into what runs under the thread sanitizer (packaging/sanitize.sh): two things that it does not know of Rust programs.
 *
 * Copies of descriptors. Whoever is told of a descriptor by epoll_wait comes after whoever added it by epoll_ctl, if both name the same
 * epoll descriptor, or copies that dup made. mio, below tokio, waits by one descriptor and adds by a copy of it, which Rust's library makes
 * by fcntl(F_DUPFD_CLOEXEC): of that the sanitizer knows nothing, and calls each first readiness of a socket a race with the making of what
 * tokio keeps of it. So such a copy is made by dup here, of which it knows. Suppressing these reports would hide the driver's true races.
 *
 * Signals. The sanitizer holds a signal back until its thread comes to, or waits in, a function of the C library that it knows. Rust's threads
 * wait in the system call for futexes itself, so SIGTERM would not be handled before the main thread has something else to do, which may be
 * never. So signals to the process are left to a thread that does nothing but wait for them, where it knows of it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
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

static void *wait_for_signals(void *nothing) {
    for (;;) poll(NULL, 0, -1);
    return nothing;
}

/* Before main: the threads that it starts do as it does and leave signals alone; processes that Rust starts begin with none blocked. */
__attribute__((constructor)) static void leave_signals_to_a_thread(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, wait_for_signals, NULL) != 0 || pthread_detach(thread) != 0) abort();
    sigset_t left;
    sigemptyset(&left);
    sigaddset(&left, SIGTERM);
    sigaddset(&left, SIGINT);
    sigaddset(&left, SIGHUP);
    if (pthread_sigmask(SIG_BLOCK, &left, NULL) != 0) abort();
}
