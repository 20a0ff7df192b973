/* SPDX-License-Identifier: Apache-2.0 */
/* The guest for QEMU as part of the benchmark. GUEST_BIN is the file, from the build. */
	.section .rodata
	.globl bench_image
	.globl bench_image_end
	.balign 16
bench_image:
	.incbin GUEST_BIN
bench_image_end:
	.section .note.GNU-stack, "", @progbits
