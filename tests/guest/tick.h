#ifndef DUNLIN_GUEST_TICK_H
#define DUNLIN_GUEST_TICK_H

#include "record.h"
#include <sys/types.h>

/* Ticks ten times a second and obeys the serial console and the power button. `late` is the child that is still
 * loading drivers; when it ends, the power button is looked for and `ready` is printed. */
void tick_forever(struct ring *ring, int console, pid_t late) __attribute__((noreturn));

#endif
