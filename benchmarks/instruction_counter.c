/* A plugin of QEMU 7.2 (plugin interface version 1) that counts the executed AArch64 instructions of a process.

   benchmarks/instructions.py compiles and loads it: -plugin instruction_counter.so,out=FILE. At each call of
   getppid(), which the counted program makes as a mark, it writes one line to FILE: the totals since the
   start, one number for each kind of instruction, and the instructions of all kinds in inner loops of
   integer and of float products. Debian 12 has no header of the interface, so this file declares the functions
   that it calls. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef uint64_t plugin_id;
enum { ADD_U64 = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t,
                                                              uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                              uint64_t));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { GETPPID = 173 }; /* the number of the system call on AArch64 */
enum { DOT, MULTIPLY, FLOAT_MULTIPLY, OTHER_SIMD, SIMD_MEMORY, MEMORY, BRANCH, INTEGER, KINDS };

enum { MIN_PRODUCTS = 4 }; /* of a block that counts as an inner loop of products */

/* A block of instructions that are always executed together, and how often that happened. */
struct block {
    uint64_t executed;
    uint16_t instructions[KINDS];
    struct block *next;
};
static struct block *blocks;
static FILE *out;

/* Encodings from the Arm Architecture Reference Manual for A-profile. */
static int is_dot(uint32_t word) { /* SDOT, UDOT: vector and by element */
    return (word & 0x9FE0FC00) == 0x0E809400 || (word & 0x9FC0F400) == 0x0F80E000;
}

static int is_integer_multiply(uint32_t word) {
    uint32_t by_element = word >> 12 & 15;
    if ((word & 0x9F200C00) == 0x0E200000) /* three different: SMLAL 8, SMLSL 10, SMULL 12 and unsigned */
        return (word >> 12 & 15) == 8 || (word >> 12 & 15) == 10 || (word >> 12 & 15) == 12;
    if ((word & 0x9F20F400) == 0x0E209400) /* three same: MLA, MLS, MUL */
        return 1;
    return (word & 0x9F000400) == 0x0F000000 && (word >> 22 & 3) != 3 && (word >> 22 & 3) != 0 &&
           (by_element == 0 || by_element == 2 || by_element == 4 || by_element == 6 || by_element == 8 ||
            by_element == 10); /* MLA, SMLAL, MLS, SMLSL, MUL, SMULL */
}

static int is_float_multiply(uint32_t word) {
    if ((word & 0xBF20FC00) == 0x0E20CC00 || (word & 0xBF20FC00) == 0x2E20DC00) /* FMLA, FMLS; FMUL */
        return 1;
    return (word & 0x9F800400) == 0x0F800000 &&
           ((word >> 12 & 15) == 1 || (word >> 12 & 15) == 5 || (word >> 12 & 15) == 9); /* by element */
}

static int kind_of(uint32_t word) {
    if ((word & 0x0A000000) == 0x08000000)
        return word & 0x04000000 ? SIMD_MEMORY : MEMORY;
    if ((word & 0x0E000000) == 0x0E000000)
        return is_dot(word)                ? DOT
               : is_integer_multiply(word) ? MULTIPLY
               : is_float_multiply(word)   ? FLOAT_MULTIPLY
                                           : OTHER_SIMD;
    return (word & 0x1C000000) == 0x14000000 ? BRANCH : INTEGER;
}

static void on_translation(plugin_id id, struct qemu_plugin_tb *tb) {
    (void)id;
    struct block *block = calloc(1, sizeof *block);
    for (size_t at = 0; at < qemu_plugin_tb_n_insns(tb); at++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, at)), sizeof word);
        block->instructions[kind_of(word)]++;
    }
    block->next = __atomic_load_n(&blocks, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&blocks, &block->next, block, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, ADD_U64, &block->executed, 1);
}

static void on_system_call(plugin_id id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c,
                           uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number != GETPPID)
        return;
    uint64_t totals[KINDS] = {0}, integer_loops = 0, float_loops = 0;
    for (struct block *block = __atomic_load_n(&blocks, __ATOMIC_ACQUIRE); block; block = block->next) {
        uint64_t sum = 0;
        for (int kind = 0; kind < KINDS; kind++) {
            totals[kind] += block->executed * block->instructions[kind];
            sum += block->executed * block->instructions[kind];
        }
        if (block->instructions[DOT] + block->instructions[MULTIPLY] >= MIN_PRODUCTS)
            integer_loops += sum;
        else if (block->instructions[FLOAT_MULTIPLY] >= MIN_PRODUCTS)
            float_loops += sum;
    }
    for (int kind = 0; kind < KINDS; kind++)
        fprintf(out, "%llu ", (unsigned long long)totals[kind]);
    fprintf(out, "%llu %llu\n", (unsigned long long)integer_loops, (unsigned long long)float_loops);
    fflush(out);
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int count,
                                                               char **arguments) {
    (void)info;
    if (count != 1 || strncmp(arguments[0], "out=", 4) || !(out = fopen(arguments[0] + 4, "w"))) {
        fprintf(stderr, "instruction_counter: give out=FILE, a file that can be written\n");
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
    return 0;
}
