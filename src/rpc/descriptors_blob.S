/* SPDX-License-Identifier: Apache-2.0 */
/* The descriptors of all .proto files (proto/meson.build), as protoc writes them. */
	.section .rodata
	.global control_desc, control_desc_end
control_desc:
	.incbin CONTROL_DESC
control_desc_end:
	.byte 0
	.section .note.GNU-stack, "", @progbits
