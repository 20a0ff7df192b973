/* SPDX-License-Identifier: Apache-2.0 */
/* The host has set up long mode, the stack, and rdi: this vCPU's control block. */
	.section .text.entry, "ax"
	.globl guest_entry
guest_entry:
	call	guest_main
	ud2
	.section .note.GNU-stack, "", @progbits
