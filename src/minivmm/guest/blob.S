/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's code as part of the VMM. GUEST_BIN is the file, from the build. */
	.section .rodata
	.globl guest_code
	.globl guest_code_end
	.balign 16
guest_code:
	.incbin GUEST_BIN
guest_code_end:
	.section .note.GNU-stack, "", @progbits
