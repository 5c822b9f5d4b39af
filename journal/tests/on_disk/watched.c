/* Tells what reaches the disk of a journal's files, a letter each: to be loaded before libc
 * (LD_PRELOAD). W and F are a write and a flush of the log, w and f of the file itself, D is a flush
 * of the folder. A letter stands in the file TOLD when the call has come back and has succeeded. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* `of_*`: the letter for each; 0 for none. */
static void tell(int file, char of_log, char of_file, char of_folder) {
    const char *journal = getenv("JOURNAL_WATCHED"), *told = getenv("TOLD");
    char link[32], path[PATH_MAX];
    int kept = errno;
    if (!journal || !told)
        return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length > 0) {
        path[length] = 0;
        size_t whole = strlen(journal), folder = strrchr(journal, '/') - journal;
        char letter = 0;
        if (strncmp(path, journal, whole) == 0)
            letter = !path[whole] ? of_file : strcmp(path + whole, "-wal") == 0 ? of_log : 0;
        else if ((size_t)length == folder && strncmp(path, journal, folder) == 0)
            letter = of_folder;
        int out = letter ? open(told, O_WRONLY | O_APPEND | O_CLOEXEC) : -1;
        /* What cannot be told must not pass for what was not done. */
        if (letter && (out < 0 || write(out, &letter, 1) != 1 || close(out)))
            abort();
    }
    errno = kept;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void *bytes, size_t length) {
    ssize_t done = NEXT(write)(file, bytes, length);
    if (done >= 0)
        tell(file, 'W', 'w', 0);
    return done;
}

ssize_t pwrite(int file, const void *bytes, size_t length, off_t at) {
    ssize_t done = NEXT(pwrite)(file, bytes, length, at);
    if (done >= 0)
        tell(file, 'W', 'w', 0);
    return done;
}

ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t at) {
    ssize_t done = NEXT(pwrite64)(file, bytes, length, at);
    if (done >= 0)
        tell(file, 'W', 'w', 0);
    return done;
}

int fsync(int file) {
    int failed = NEXT(fsync)(file);
    if (!failed)
        tell(file, 'F', 'f', 'D');
    return failed;
}

int fdatasync(int file) {
    int failed = NEXT(fdatasync)(file);
    if (!failed)
        tell(file, 'F', 'f', 'D');
    return failed;
}
