/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/groups.h"

#include <errno.h>
#include <grp.h>
#include <unistd.h>

int groups_find(const struct options_names *names, const char *key, struct groups *ret,
                struct error *err)
{
	struct groups groups = { .gids = { getegid() }, .n = 1 };

	for (size_t i = 0; i < names->n; i++) {
		const struct group *group = getgrnam(names->names[i]);

		if (!group)
			return error_set(err, -EINVAL, "%s: no group \"%s\" here", key,
			                 names->names[i]);
		groups.gids[groups.n++] = group->gr_gid;
	}
	*ret = groups;
	return 0;
}
