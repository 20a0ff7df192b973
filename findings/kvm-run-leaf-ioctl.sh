#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A signal handler that reads a variable which was set right before ioctl(KVM_RUN) may not see it:
# glibc declares ioctl() __THROW, which is "leaf" as well to gcc: such a function calls nothing of
# this file. So a store to a static variable that only this file knows, and that is overwritten after
# the call, is dropped. That ioctl(KVM_RUN) takes milliseconds to hours, and is where signals come
# (SIGBUS of a lost page, the kick of a vCPU), gcc can't know. read() is not declared so, and is seen
# to keep the store; volatile, or a signal fence before the call, keeps it, too.
#
# Seen on Linux 6.18.44 (gcc 12.2.0, glibc 2.36), with /dev/kvm (x86):
#   -O2, plain, around ioctl(KVM_RUN): the handler saw nothing
#   -O2, plain, around read(): the handler saw the vCPU
#   -O2, volatile, around ioctl(KVM_RUN): the handler saw the vCPU
#   -O0, plain, around ioctl(KVM_RUN): the handler saw the vCPU
# Exit: 0 as seen; 1 where it behaves differently; 2 where it can't be tried.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/t.c" <<'EOF'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

/* What the handler is to know of: which vCPU this thread runs. */
static struct kvm_run *KIND running;
static struct kvm_run *volatile seen;

static void on_alarm(int sig)
{
	(void)sig;
	seen = running;
}

/* As a VMM does it: the handler finds the vCPU while it runs, and nothing else. */
static int run(int fd, struct kvm_run *vcpu)
{
	char byte;
	int rc;

	running = vcpu;
	rc = READ ? (int)read(fd, &byte, 1) : ioctl(fd, KVM_RUN, 0);
	running = NULL;
	return rc;
}

static void die(const char *what)
{
	printf("can't be tried here: %s: %s\n", what, strerror(errno));
	exit(2);
}

int main(void)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct itimerval soon = { .it_value = { .tv_usec = 200000 } };
	struct kvm_userspace_memory_region slot = { .memory_size = 4096 };
	struct kvm_regs regs = { .rflags = 2 };
	struct kvm_sregs sregs;
	int kvm = open("/dev/kvm", O_RDWR), vm, vcpu, pipes[2];
	struct kvm_run *shared;
	unsigned char *page;

	if (kvm < 0)
		die("/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	/* jmp . */
	memcpy(page, "\xeb\xfe", 2);
	slot.userspace_addr = (unsigned long)page;
	if (vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
		die("a VM");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	shared = mmap(NULL, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
	              MAP_SHARED, vcpu, 0);
	if (vcpu < 0 || shared == MAP_FAILED || ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		die("a vCPU");
	sregs.cs.base = sregs.cs.selector = 0;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
		die("registers");
	if (pipe(pipes) < 0 || sigaction(SIGALRM, &action, NULL) < 0 ||
	    setitimer(ITIMER_REAL, &soon, NULL) < 0)
		die("a signal");
	if (run(READ ? pipes[0] : vcpu, shared) != -1 || errno != EINTR)
		die(READ ? "read" : "KVM_RUN");
	printf("the handler saw %s\n", seen == shared ? "the vCPU" : "nothing");
	return seen == shared ? 0 : 3;
}
EOF
status=0
# $1: -O; $2: of the variable; $3: what waits; $4: what the handler is to see
try()
{
	read=0
	[ "$3" = "read()" ] && read=1
	kind=$2
	[ "$kind" = plain ] && kind=
	gcc "$1" -Wall -Wextra -DKIND="$kind" -DREAD="$read" -o "$dir/t" "$dir/t.c" || exit 2
	rc=0
	said=$("$dir/t") || rc=$?
	[ "$rc" = 2 ] && { echo "$said"; exit 2; }
	echo "$1, $2, around $3: $said"
	[ "$said" = "the handler saw $4" ] || status=1
}
try -O2 plain "ioctl(KVM_RUN)" nothing
try -O2 plain "read()" "the vCPU"
try -O2 volatile "ioctl(KVM_RUN)" "the vCPU"
try -O0 plain "ioctl(KVM_RUN)" "the vCPU"
exit "$status"
