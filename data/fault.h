/* fault.h - in front of igpt.c (-include data/fault.h): the n-th allocation, write, ... fails.
   SPDX-License-Identifier: MIT

   IGPT_FAULT="write 7 once" makes the seventh write fail, "write 7 on" all from it on, and "write 7
   kill" ends the program before it; the kinds are those of fault_kinds. Where the program ends and
   that call never came, its status becomes FAULT_SPARED. A run that hangs is ended by an alarm. What
   goes to stderr is left alone, since this is where a failure is told. test_igpt.c counts n up for
   every command. */
#define _DEFAULT_SOURCE 1
#define _FILE_OFFSET_BITS 64
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FAULT_SPARED = 77, FAULT_SECONDS = 20 };
enum { // of fault_kinds
    AT_ALLOC, AT_OPEN, AT_FOLDER, AT_READ, AT_WRITE,
    AT_FLUSH, AT_SYNC, AT_CLOSE, AT_RENAME, AT_REMOVE
};

/* "open" is of files and of folders that are read, "folder" of folders that are made. */
static const struct {
    const char *name;
    int error;
} fault_kinds[] = {{"alloc", ENOMEM}, {"open", EMFILE},  {"folder", ENOSPC},
                   {"read", EIO},     {"write", ENOSPC}, {"flush", ENOSPC},
                   {"sync", EIO},     {"close", EIO},    {"rename", EACCES},
                   {"remove", EACCES}};
static struct {
    int ready, kind;
    long n, calls; // the call to fail, those that there were
    char mode[8];
    FILE *written;
} fault_plan;

static void fault_end(void) {
    if (fault_plan.n && fault_plan.calls < fault_plan.n) _exit(FAULT_SPARED);
}

static void fault_read_plan(void) {
    const char *text = getenv("IGPT_FAULT");
    char kind[16] = "";
    fault_plan.ready = 1;
    alarm(FAULT_SECONDS);
    if (!text) return;
    if (sscanf(text, "%15s %ld %7s", kind, &fault_plan.n, fault_plan.mode) != 3) abort();
    while (strcmp(fault_kinds[fault_plan.kind].name, kind))
        if (++fault_plan.kind > AT_REMOVE) abort();
    atexit(fault_end);
}

/* Count a call of this kind; 1, and errno is set, where it is to fail. */
static int fault(int kind) {
    if (!fault_plan.ready) fault_read_plan();
    if (!fault_plan.n || kind != fault_plan.kind) return 0;
    long call = __atomic_add_fetch(&fault_plan.calls, 1, __ATOMIC_RELAXED);
    int fails = strcmp(fault_plan.mode, "on") ? call == fault_plan.n : call >= fault_plan.n;
    if (fails && !strcmp(fault_plan.mode, "kill")) kill(getpid(), SIGKILL);
    if (fails) errno = fault_kinds[kind].error;
    return fails;
}

/* The same of a stream, which remembers that it failed: reading one that is only written sets its
   error indicator, and so does writing to one that is only read. */
static int fault_stream(int kind, FILE *f) {
    if (f == stderr || !fault(kind)) return 0;
    if (kind == AT_READ) putc(0, f);
    else getc(f);
    errno = fault_kinds[kind].error;
    return 1;
}

/* A file that was only read may be closed as badly as it likes: its bytes are here. */
static FILE *fault_fopen(const char *path, const char *mode) {
    FILE *f = fault(AT_OPEN) ? NULL : fopen(path, mode);
    if (*mode == 'w') fault_plan.written = f; // there is one at a time
    return f;
}

static int fault_fclose(FILE *f) {
    int fails = f == fault_plan.written && fault(AT_CLOSE), closed = fclose(f);
    fault_plan.written = NULL; // the next stream may lie where this one did
    return fails ? errno = EIO, EOF : closed;
}

/* A value that may be left unused without a warning. */
static inline int fault_int(int value) { return value; }
static inline size_t fault_size(size_t value) { return value; }

#undef strdup
#undef printf
#undef fprintf
#undef getc_unlocked
#undef putc_unlocked
#undef putchar
#define malloc(n) (fault(AT_ALLOC) ? NULL : malloc(n))
#define calloc(n, size) (fault(AT_ALLOC) ? NULL : calloc(n, size))
#define realloc(p, n) (fault(AT_ALLOC) ? NULL : realloc(p, n))
#define strdup(s) (fault(AT_ALLOC) ? NULL : strdup(s))
#define posix_memalign(p, to, n) (fault(AT_ALLOC) ? ENOMEM : posix_memalign(p, to, n))
#define fopen(path, mode) fault_fopen(path, mode)
#define opendir(path) (fault(AT_OPEN) ? NULL : opendir(path))
#define readdir(folder) (fault(AT_READ) ? NULL : readdir(folder))
#define mkdir(path, mode) (fault(AT_FOLDER) ? -1 : mkdir(path, mode))
#define fread(p, size, n, f) (fault_stream(AT_READ, f) ? 0 : fread(p, size, n, f))
#define getc_unlocked(f) fault_int(fault_stream(AT_READ, f) ? EOF : getc_unlocked(f))
#define fwrite(p, size, n, f) fault_size(fault_stream(AT_WRITE, f) ? 0 : fwrite(p, size, n, f))
#define fputc(c, f) fault_int(fault_stream(AT_WRITE, f) ? EOF : fputc(c, f))
#define putc_unlocked(c, f) fault_int(fault_stream(AT_WRITE, f) ? EOF : putc_unlocked(c, f))
#define fputs(s, f) fault_int(fault_stream(AT_WRITE, f) ? EOF : fputs(s, f))
#define fprintf(f, ...) fault_int(fault_stream(AT_WRITE, f) ? -1 : fprintf(f, __VA_ARGS__))
#define printf(...) fault_int(fault_stream(AT_WRITE, stdout) ? -1 : printf(__VA_ARGS__))
#define puts(s) fault_int(fault_stream(AT_WRITE, stdout) ? EOF : puts(s))
#define putchar(c) fault_int(fault_stream(AT_WRITE, stdout) ? EOF : putchar(c))
#define fflush(f) fault_int(fault_stream(AT_FLUSH, f) ? EOF : fflush(f))
#define fsync(fd) (fault(AT_SYNC) ? -1 : ((void)(fd), 0)) // no test waits for the disk
#define fclose(f) fault_fclose(f)
#define rename(from, to) (fault(AT_RENAME) ? -1 : rename(from, to))
#define remove(path) (fault(AT_REMOVE) ? -1 : remove(path))
