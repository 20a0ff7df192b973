/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Somebody who may write the directory of a socket and is as fast as can be: once it is bound, a
 * link to SWAP_TO is in its place. For LD_PRELOAD.
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int bind(int sock, const struct sockaddr *addr, socklen_t len)
{
	int (*real)(int, const struct sockaddr *, socklen_t) =
	        (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "bind");
	const struct sockaddr_un *un = (const struct sockaddr_un *)addr;
	int rc = real(sock, addr, len);

	if (!rc && addr->sa_family == AF_UNIX && *un->sun_path) {
		(void)unlink(un->sun_path);
		(void)!symlink(getenv("SWAP_TO"), un->sun_path);
	}
	return rc;
}
