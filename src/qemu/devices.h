/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices whose accesses to guest memory nobody can trap, in what QEMU's monitor for people says:
 * a guest that has one can't come to a QEMU whose memory is not there yet.
 */
#ifndef QEMU_DEVICES_H
#define QEMU_DEVICES_H

#include <stdbool.h>

#define DEVICE_NAME_BYTES 64

enum device_kind {
	DEVICE_VFIO,
	DEVICE_VDPA,
	DEVICE_VHOST_USER,
	DEVICE_KINDS,
};

struct device {
	char type[DEVICE_NAME_BYTES]; /* as -device has it, or -netdev */
	char id[DEVICE_NAME_BYTES];   /* empty: it was given none */
};

/*
 * devices_find() - the first of a kind
 * @qtree: the answer to "info qtree"
 * @network: to "info network"
 *
 * Return: whether there is one.
 */
bool devices_find(const char *qtree, const char *network, enum device_kind kind,
                  struct device *ret);

#endif
