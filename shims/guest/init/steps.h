/* Carries out the steps of a launch plan, in the process that becomes the container's first. */
#ifndef VOID_STEPS_H
#define VOID_STEPS_H

#include "failure.h"
#include "plan.h"

/* Carries out one step. 0 or -errno; the sentence in `failure` then begins with the step's number
 * and what it was to do. */
int steps_run(const struct plan_step *step, size_t index, const char *rootfs,
              struct failure *failure);

#endif
