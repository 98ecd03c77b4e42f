// A layer of faults between the daemon and its disk: cc -shared -fPIC -o fault.so fault.c -ldl,
// then LD_PRELOAD=fault.so with
//
//   FAULT_BELOW     the directory whose files fail
//   FAULT_CONTROL   a file that holds `struct control`, mapped here and by the test, which switches
//                   faults on and off in it while the daemon runs, and reads how many there were
//
// Only calls that the C library offers as functions can be reached: the daemon uses these.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITES = 1, SYNCS = 2, READS = 4, ALLOCATIONS = 8, HINTS = 16 };

struct control {
  _Atomic uint32_t calls;   // which calls fail, as above; 0: none
  _Atomic int32_t error;    // the errno; 0: success is reported and nothing is done
  _Atomic uint32_t hits;    // calls that failed so far
  _Atomic uint32_t left;    // how many more may fail; UINT32_MAX: all
  char name[64];            // only files whose path below the directory contains this
};

static struct control *control;
static char below[PATH_MAX];
static size_t below_length;

__attribute__((constructor)) static void start(void) {
  const char *directory = getenv("FAULT_BELOW"), *path = getenv("FAULT_CONTROL");
  if (!directory || !path || !realpath(directory, below)) return;
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  void *map = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  below_length = strlen(below);
  if (map != MAP_FAILED) control = map;
}

// Whether this call is to fail; sets errno.
static int fails(uint32_t call, int fd) {
  if (!control || !(control->calls & call)) return 0;
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  if (strncmp(path, below, below_length) || !strstr(path + below_length, control->name)) return 0;
  uint32_t left = control->left;
  do {
    if (left == 0) return 0;
  } while (left != UINT32_MAX &&
           !__atomic_compare_exchange_n((uint32_t *)&control->left, &left, left - 1, 0,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  control->hits++;
  errno = control->error;
  return 1;
}

static ssize_t bytes_of(const struct iovec *parts, int count) {
  ssize_t bytes = 0;
  while (count-- > 0) bytes += parts[count].iov_len;
  return bytes;
}

#define LAYER(result, name, call, parameters, arguments, success)               \
  result name parameters {                                                      \
    static result(*real_##name) parameters;                                     \
    if (!real_##name) real_##name = (result(*) parameters)dlsym(RTLD_NEXT, #name); \
    if (fails(call, fd)) return control->error ? (result)-1 : (result)(success); \
    return real_##name arguments;                                               \
  }

LAYER(ssize_t, pwrite, WRITES, (int fd, const void *data, size_t count, off_t at),
      (fd, data, count, at), count)
LAYER(ssize_t, pwrite64, WRITES, (int fd, const void *data, size_t count, off64_t at),
      (fd, data, count, at), count)
LAYER(ssize_t, pwritev, WRITES, (int fd, const struct iovec *parts, int count, off_t at),
      (fd, parts, count, at), bytes_of(parts, count))
LAYER(ssize_t, pwritev64, WRITES, (int fd, const struct iovec *parts, int count, off64_t at),
      (fd, parts, count, at), bytes_of(parts, count))
LAYER(ssize_t, write, WRITES, (int fd, const void *data, size_t count), (fd, data, count), count)
LAYER(ssize_t, pread, READS, (int fd, void *data, size_t count, off_t at),
      (fd, data, count, at), 0)
LAYER(ssize_t, pread64, READS, (int fd, void *data, size_t count, off64_t at),
      (fd, data, count, at), 0)
LAYER(int, fsync, SYNCS, (int fd), (fd), 0)
LAYER(int, fdatasync, SYNCS, (int fd), (fd), 0)
LAYER(int, sync_file_range, HINTS, (int fd, off64_t from, off64_t count, unsigned flags),
      (fd, from, count, flags), 0)
LAYER(int, fallocate, ALLOCATIONS, (int fd, int mode, off_t from, off_t count),
      (fd, mode, from, count), 0)
LAYER(int, fallocate64, ALLOCATIONS, (int fd, int mode, off64_t from, off64_t count),
      (fd, mode, from, count), 0)
LAYER(int, ftruncate, ALLOCATIONS, (int fd, off_t length), (fd, length), 0)
LAYER(int, ftruncate64, ALLOCATIONS, (int fd, off64_t length), (fd, length), 0)
