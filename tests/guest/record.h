/* The ring of tick records that the guest leaves on its first disk.
 *
 * The ring starts RING_START bytes into the disk (room for a boot sector and a partition table) and has
 * min(RING_SLOTS, what fits) slots of 512 bytes. Tick `seq` lives in slot `seq % slots`; the first tick is 0.
 *
 * One record, little-endian:
 *
 *   offset  bytes
 *        0      8  magic "DUNTICK1"
 *        8      8  seq      number of the tick; + 1 from record to record, across boots too
 *       16      8  boot     how many times this disk was booted, the present one included; from 1
 *       24      8  mono_ms  CLOCK_MONOTONIC of the guest when the record was made
 *       32      8  real_ms  CLOCK_REALTIME of the guest, ms since 1970
 *       40      8  slots    size of the ring this record was written into
 *       48     32  name     `tick.name=` of the kernel command line, padded with NUL
 *       80    428  fill     byte at offset i is (seq + i) & 0xff, so that a torn or stale sector shows
 *      508      4  crc32    IEEE (zlib, crc32fast), over bytes 0..508
 *
 * Each record goes down with one O_DIRECT | O_DSYNC write, and only then is its tick printed: a printed tick is
 * a tick on disk. Walking the ring from the oldest record to the newest, seq rises by exactly one (nothing lost,
 * nothing written twice with different numbers), boot never falls, and every record ends in its own checksum.
 */
#ifndef DUNLIN_GUEST_RECORD_H
#define DUNLIN_GUEST_RECORD_H

#include <stdint.h>

#define RECORD_BYTES 512
#define RING_START (1024 * 1024)
/* 65536 ticks are 109 minutes at ten a second, and 32 MiB to read at boot. */
#define RING_SLOTS 65536

struct ring {
    int fd; /* -1: no disk, ticks are only printed */
    uint64_t slots;
    uint64_t boot;
    uint64_t next_seq;
    char disk[16];
    char name[32];
};

/* Finds the disk, reads the ring and sets `boot` and `next_seq` to carry on after the newest record.
 * A disk that is not ours (no record, but not empty either) is left alone. */
void ring_open(struct ring *ring, const char *wanted_disk);

/* Writes the record of `next_seq` through to the disk. 0, or an errno; next_seq is left to the caller. */
int ring_write(struct ring *ring, uint64_t mono_ms, uint64_t real_ms);

#endif
