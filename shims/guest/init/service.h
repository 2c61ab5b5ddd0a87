/* The methods of voidbox.guest.v1.Guest: the table, Hello, and PowerOff. */
#ifndef VOID_SERVICE_H
#define VOID_SERVICE_H

#include <stdbool.h>

/* `in_vm`: Hello may set the machine's clock, entropy and names. */
void service_init(bool in_vm);

/* True once PowerOff was asked for: the loop then flushes and ends. */
bool service_powering_off(void);

#endif
