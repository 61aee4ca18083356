/* Mends ptrace(PTRACE_SETREGSET, NT_X86_XSTATE) for a User Mode Linux of 6.1.
 *
 * That kernel keeps the first 2696 bytes of a process's extended registers, which was all there was. On a CPU with AMX
 * there are 11008, and the host's kernel takes only the whole of them: every guest dies at its first process. Here the
 * bytes that the guest does not keep are filled in from the process itself, so that it keeps what it had.
 *
 * Loaded into the guest's kernel alone. It calls no library but for errno. */
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PEEK_FIRST 1
#define PEEK_LAST 3
#define GET_REGISTERS 0x4204
#define SET_REGISTERS 0x4205
#define XSTATE 0x202
/* CPUID leaf 13 of no CPU there is says more than 12 KiB. */
#define XSTATE_BYTES_MAX 65536

static char whole[XSTATE_BYTES_MAX];

long ptrace(int request, ...)
{
    va_list list;
    va_start(list, request);
    long pid = va_arg(list, int);
    void *address = va_arg(list, void *);
    void *data = va_arg(list, void *);
    va_end(list);
    if (request >= PEEK_FIRST && request <= PEEK_LAST) {
        long word;
        long done = syscall(SYS_ptrace, request, pid, address, &word);
        return done < 0 ? done : word;
    }
    if (request == SET_REGISTERS && (long)address == XSTATE) {
        struct iovec *kept = data, all = {whole, sizeof whole};
        if (syscall(SYS_ptrace, GET_REGISTERS, pid, address, &all) < 0)
            return -1;
        if (kept->iov_len < all.iov_len) {
            for (unsigned long at = 0; at < kept->iov_len; at++)
                ((volatile char *)whole)[at] = ((char *)kept->iov_base)[at];
            return syscall(SYS_ptrace, request, pid, address, &all);
        }
    }
    return syscall(SYS_ptrace, request, pid, address, data);
}
