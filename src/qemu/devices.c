/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/devices.h"

#include <stdio.h>
#include <string.h>

/* Kinds by how their types begin: of -device, and of -netdev. */
static const struct {
	const char *device, *netdev;
} kinds[DEVICE_KINDS] = {
	[DEVICE_VFIO] = { "vfio-", NULL },
	[DEVICE_VDPA] = { "vhost-vdpa-", "vhost-vdpa" },
	[DEVICE_VHOST_USER] = { "vhost-user-", "vhost-user" },
};

/* "      dev: vfio-pci, id "hostdev0"" */
static bool find_in_qtree(const char *text, const char *prefix, struct device *ret)
{
	static const char mark[] = "dev: ";

	while ((text = strstr(text, mark))) {
		text += strlen(mark);
		if (strncmp(text, prefix, strlen(prefix)))
			continue;
		*ret = (struct device){ 0 };
		return sscanf(text, "%63[^,\n], id \"%63[^\"\n]\"", ret->type, ret->id) > 0;
	}
	return false;
}

/* " \ net0: index=0,type=vhost-user,chardev=c0" */
static bool find_in_network(const char *text, const char *type, struct device *ret)
{
	for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n') {
		*ret = (struct device){ 0 };
		if (sscanf(line, " %*[\\] %63[^:\n]: index=%*d,type=%63[^,\n]", ret->id,
		           ret->type) != 2 &&
		    sscanf(line, "%63[^:\n]: index=%*d,type=%63[^,\n]", ret->id, ret->type) != 2)
			continue;
		if (!strcmp(ret->type, type))
			return true;
	}
	return false;
}

bool devices_find(const char *qtree, const char *network, enum device_kind kind, struct device *ret)
{
	return find_in_qtree(qtree, kinds[kind].device, ret) ||
	       (kinds[kind].netdev && find_in_network(network, kinds[kind].netdev, ret));
}
