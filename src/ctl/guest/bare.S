/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From where a multiboot loader leaves off to ring 3 in long mode, by the fewest steps: on some hosts
 * KVM runs ring 3 natively and emulates ring 0. No interrupts, no way back: a fault is a reset.
 */
#define MAGIC 0x1badb002
#define FLAGS 0x00010002 /* tell the memory's size; addresses below */
#define LOAD_ADDRESS 0x100000

	.section .text.start, "ax"
	.code32
	.globl start
start:
	jmp enter
	.balign 4
header:
	.long MAGIC, FLAGS, -(MAGIC + FLAGS)
	.long header, LOAD_ADDRESS, data_end, bss_end, start

enter:
	mov 8(%ebx), %edi /* mem_upper: KiB above 1 MiB */
	mov %cr4, %eax
	or $0x620, %eax /* PAE, and SSE allowed */
	mov %eax, %cr4
	mov $pml4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx /* EFER: long mode */
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	or $0x80000001, %eax
	mov %eax, %cr0
	lgdt gdt_pointer
	ljmp $0x08, $enter64

	.code64
enter64:
	mov $0x23, %eax
	mov %eax, %ds
	mov %eax, %es
	mov $stack_end, %esp
	pushq $0x23
	pushq $stack_end
	pushq $0x3002 /* IOPL 3: ring 3 may use ports */
	pushq $0x2b
	pushq $main
	iretq

	.data
	.balign 8
gdt:
	.quad 0
	.quad 0x00af9a000000ffff /* 08: code, ring 0 */
	.quad 0x00cf92000000ffff /* 10: data, ring 0 */
	.quad 0
	.quad 0x00cff2000000ffff /* 20: data, ring 3 */
	.quad 0x00affa000000ffff /* 28: code, ring 3 */
gdt_pointer:
	.word gdt_pointer - gdt - 1
	.long gdt

	/* The first GiB, each address its own, ring 3 may write. */
	.balign 4096
pml4:
	.quad pdpt + 7
	.fill 511, 8, 0
pdpt:
	.quad page_directory + 7
	.fill 511, 8, 0
page_directory:
	.set address, 0
	.rept 512
	.quad address + 0x87
	.set address, address + 0x200000
	.endr

	.bss
	.balign 16
	.skip 65536
stack_end:
	.section .note.GNU-stack, "", @progbits
