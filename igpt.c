/* igpt.c - Image GPT (Chen et al. 2020, "Generative Pretraining from Pixels") in one C file.
   SPDX-License-Identifier: MIT

   It reads from top to bottom, in three parts. An evening is enough for the first; the others are
   there to be looked things up in.

   The method    1 numbers       compilers, errors, memory, random numbers, exp
                 2 matmul        the plain product in six lines, then the same one fast
                 3 layers        forward beside backward; attention plain, then fast
                 4 model         the list of tensors, activations, forward, backward
                 5 objectives    L_AR, L_BERT, L_CLF; Adam
                 6 palette       k-means: pixels become tokens
                 7 sampling      key-value cache, drawing
                 8 probe         features of every layer, logistic regression by L-BFGS
   The files     9 platform      what differs from one system to the next; writing a file whole
                10 images        readers, resizing, augmentation, splits
                11 checkpoints   JSON, safetensors, the model directory
                12 pictures      PNG, charts, the terminal
   The program  13 options       one table: parsing, defaults, help
                14 training      train, finetune, resume
                15 commands      sample, complete, eval, probe, palette, info, main

   igpt.h says of each public function what it takes and returns. Notation in comments: B images, T
   positions, K colours, d = n_embd, H heads of hs = d / H, L layers, C classes; (B, T, d) is
   row-major; x' is the transpose of x, dx the derivative of the loss by x. */

/* sqrt need not set errno, and ?: may be computed without a branch: no operation gives another
   result, but loops become vectors, and training is 1.5 times as fast. clang branches as little by
   itself; its sqrt needs the Makefile's -fno-math-errno. */
#if defined __GNUC__ && !defined __clang__
#    pragma GCC push_options // until this file's end: others may include it
#    pragma GCC optimize("no-math-errno", "no-trapping-math")
#endif

#define _DEFAULT_SOURCE 1        // with -std=c11, too, the C library shows what POSIX has
#define _FILE_OFFSET_BITS 64     // files beyond 2 GB on 32-bit machines
#define __USE_MINGW_ANSI_STDIO 1 // Windows: printf as C has it
#include "igpt.h"
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* ==== 1 numbers =================================================================================
   What every section leans on. The idea to take away: random numbers have no state. Each one is a
   hash of (seed, stream, counter), so any of them can be had in any order, by any thread, and
   resuming a run needs nothing but its step number.

   First what differs between compilers; what differs between systems is in section 9. */

#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16 // 16: it is about _Float16
#    error                                                                                         \
        "wider arithmetic than real's own makes other results; on 32-bit x86: -msse2 -mfpmath=sse"
#endif

#ifdef __MINGW32__
#    define PRINTF_LIKE __attribute__((format(gnu_printf, 1, 2)))
#elif defined __GNUC__
#    define PRINTF_LIKE __attribute__((format(printf, 1, 2)))
#else
#    define PRINTF_LIKE
#endif

/* Compilers without GNU C's vectors run the plain routines; tcc has no threads either. */
#if !defined __GNUC__ || defined __TINYC__
#    define IGPT_PLAIN 1 // as -DIGPT_PLAIN has it
#endif
#ifdef __TINYC__
#    define _Thread_local
#endif

#ifdef _OPENMP
#    include <omp.h>
void threads_set(int n) { omp_set_num_threads(n > 0 ? n : omp_get_num_procs()); }
int threads_get(void) { return omp_get_max_threads(); }
#else
void threads_set(int n) { (void)n; }
int threads_get(void) { return 1; }
static int omp_get_thread_num(void) { return 0; }
#endif

/* Errors: one sentence, kept until the next one. */
static _Thread_local char last_error[5000]; // a path can have 4,095 characters

const char *error_text(void) { return last_error; }

/* Names in files are no commands to a terminal: control characters become '?'. */
static void text_clean(char *text) {
    for (uint8_t *c = (uint8_t *)text; *c; c++)
        if (*c < ' ' || *c == 127) *c = '?';
        else if (*c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0) c[0] = c[1] = '?'; // U+0080 .. U+009F
}

/* Note why the caller fails; returns -1, so that `return fail(...)` does both. */
PRINTF_LIKE static int fail(const char *format, ...) {
    char text[sizeof last_error]; // an argument may be the previous sentence
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    text_clean(text);
    memcpy(last_error, text, sizeof text);
    return -1;
}

static inline Size min(Size a, Size b) { return a < b ? a : b; }
static inline Size ceil_div(Size n, Size by) { return (n + by - 1) / by; }
static inline Size round_up(Size n, Size to) { return ceil_div(n, to) * to; }

/* The length of a block; in a build for tests, -DIGPT_TINY, one so small that the edges of blocks
   are met everywhere. Results differ from the usual build's by rounding. */
#ifdef IGPT_TINY
#    define BLOCK_OF(usual, tiny) (tiny)
#else
#    define BLOCK_OF(usual, tiny) (usual)
#endif

/* A multiple of 64 bytes, where the system can do it on a 64-byte boundary (a cache line, the
   widest vector); free() takes it back. From section 9. */
static void *aligned_memory(size_t bytes);

/* Zeroed memory for count items; NULL and an error where the product overflows or there is not
   enough. Given back with free(). */
static void *zalloc(Size count, Size size) {
    const Size most = (Size)(SIZE_MAX / 2) - 64;
    if (size && count > most / size)
        return fail("cannot allocate %lld items of %lld bytes: too large", count, size), NULL;
    Size bytes = count && size ? round_up(count * size, 64) : 64;
    void *p = aligned_memory((size_t)bytes);
    if (!p) return fail("out of memory: cannot allocate %.1f MB", (double)bytes / 1e6), NULL;
    return memset(p, 0, (size_t)bytes);
}

/* Hand out n reals of the block at base, each piece on a cache line; base NULL only counts. So the
   function that lays something out tells its size, too. */
static real *carve(real *base, Size *used, Size n) {
    real *piece = base ? base + *used : NULL;
    *used += round_up(n, 16);
    return piece;
}

static uint64_t mix64(uint64_t z) { // SplitMix64's finaliser: every input bit reaches every output
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t counter) {
    const uint64_t golden = 0x9e3779b97f4a7c15u; // 2^64 / golden ratio: SplitMix64's stride
    uint64_t state = mix64(mix64(seed + golden) + stream * golden);
    return mix64(state + (counter + 1) * golden);
}

double random_uniform(uint64_t seed, uint64_t stream, uint64_t counter) {
    return (double)(random_bits(seed, stream, counter) >> 11) * 0x1p-53;
}

double random_normal(uint64_t seed, uint64_t stream, uint64_t counter) {
    double u = 1 - random_uniform(seed, stream, 2 * counter); // (0, 1]: its logarithm is finite
    double v = random_uniform(seed, stream, 2 * counter + 1);
    return sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
}

void random_shuffle(Size *order, Size n, uint64_t seed, uint64_t stream) {
    for (Size i = n - 1; i > 0; i--) {
        Size j = (Size)(random_bits(seed, stream, i) % (uint64_t)(i + 1));
        Size swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
}

/* What a stream is for, in its upper byte; the rest numbers the epoch, tensor or image. */
enum { FOR_INIT = 1, FOR_ORDER, FOR_FLIP, FOR_CROP, FOR_MASK };
enum { FOR_SAMPLE = 6, FOR_PALETTE, FOR_SPLIT, FOR_LABELS };

static uint64_t stream_of(uint64_t purpose, uint64_t index) { return purpose << 56 | index; }

/* exp splits x = n ln 2 + r with |r| <= ln(2) / 2: e^x = 2^n e^r. Adding 1.5 * 2^23 rounds to an
   integer and leaves n in the lowest bits of the float, ready to be shifted into an exponent; a
   polynomial of degree 6 gives e^r. libm's exp would be a call for every element. */
real real_exp(real x) {
#ifdef IGPT_DOUBLE
    return exp(x);
#else
    const float round = 0x1.8p23f;
    float t = x * 0x1.715476p0f + round; // 1 / ln 2
    float n = t - round;
    float r = x - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f; // ln 2, n times the first is exact
    float p = 0x1.6c16c2p-10f;                            // 1 / 6!; minimax would gain little
    p = p * r + 0x1.111112p-7f;
    p = p * r + 0x1.555556p-5f;
    p = p * r + 0x1.555556p-3f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    union {
        float f;
        uint32_t bits;
    } magic = {.f = t}, scale;
    scale.bits = (magic.bits << 23) + (126u << 23); // 2^(n - 1): n = 128 has no float of its own
    p = p * scale.f * 2;
    p = x > 0x1.62e42ep6f ? INFINITY : p;
    return x < -0x1.5a8p6f ? 0 : p;
#endif
}

static real dot(const real *a, const real *b, Size n) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Size i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* The largest of x[0..n). Separate maxima for each lane let compilers vectorise what they may not
   reorder in a single one. */
static real row_max(const real *x, Size n) {
    enum { LANES = 32 };
    real lane[LANES], max = -INFINITY;
    Size j = 0;
    for (int i = 0; i < LANES; i++) lane[i] = -INFINITY;
    for (; j + LANES <= n; j += LANES)
        for (int i = 0; i < LANES; i++) lane[i] = x[j + i] > lane[i] ? x[j + i] : lane[i];
    for (; j < n; j++) max = x[j] > max ? x[j] : max;
    for (int i = 0; i < LANES; i++) max = lane[i] > max ? lane[i] : max;
    return max;
}

/* ==== 2 matmul ==================================================================================
   Nearly all the work of a transformer is C (+)= A B. This is all there is to it: */

Matrix matrix(const real *data, Size rows, Size cols) {
    return (Matrix){(real *)data, rows, cols, cols, 1};
}

Matrix transposed(Matrix m) { return (Matrix){m.data, m.cols, m.rows, m.col_step, m.row_step}; }

static inline real *element(Matrix m, Size i, Size j) {
    return m.data + i * m.row_step + j * m.col_step;
}

void matmul_plain(Matrix c, Matrix a, Matrix b, int accumulate) {
#pragma omp parallel for schedule(static)
    for (Size i = 0; i < c.rows; i++) {
        for (Size j = 0; j < c.cols && !accumulate; j++) *element(c, i, j) = 0;
        for (Size k = 0; k < a.cols; k++)
            for (Size j = 0; j < c.cols; j++)
                *element(c, i, j) += *element(a, i, k) * *element(b, k, j);
    }
}

/* The scratch memory of the calling thread. */
static real *scratch_of_thread(Team team) { return team.memory + omp_get_thread_num() * team.each; }

/* IGPT_PLAIN makes the program run on the plain routines, and so does a compiler without GNU vector
   types: for a first port, or to see what the rest of this section is worth. */
#ifdef IGPT_PLAIN
enum { MATMUL_SCRATCH = 0 };

void matmul(Team team, Matrix c, Matrix a, Matrix b, int accumulate) {
    (void)team;
    matmul_plain(c, a, b, accumulate);
}
#else

/* The same product, fast. A processor multiplies far faster than it reads memory, so the whole art
   is to use each number many times once it is loaded. Three steps:

   1. A register tile. MR x NR sums of C stay in registers while k runs; each step loads NR numbers
      of B and MR numbers of A, and does MR * NR multiply-adds with them:

                         NR columns: NV vectors of VL lanes
                        +--------+--------+
            row k of B  |  b[0]  |  b[1]  |   loaded once, used MR times
                        +--------+--------+
             +---+      +--------+--------+
             | a | ---> |  sum   |  sum   |   a: one number, spread over all lanes, used NR times
             | a | ---> |  sum   |  sum   |
      MR     | a | ---> |  sum   |  sum   |   MR * NV sums + NV of b + 1 of a fill the registers
      rows   |...| ---> |  ...   |  ...   |
             +---+      +--------+--------+
           column k of A

   2. Packing. The tile walks A and B along k. Both are first copied into panels (MR rows of A, NR
      columns of B) that lie in memory just as they will be read. This is also where transposition
      disappears: a panel looks the same whichever way its matrix was stored.

   3. Blocking. KC steps of k at a time, so that a panel of B comes from the nearest cache while it
      meets all panels of a block of A, MC rows. Both blocks, MC x KC and KC x NC, are about half a
      megabyte each: what a second-level cache holds.

            C (M, N)                A (M, K)             B (K, N)
        +-------+-------+         +----+-----+         +--+--+--+--+
     MC {       |       |      MC {####|     |      KC {##|##|  |  |    # what is packed at a time
        +-------+-------+   +=    +----+-----+    *    +--+--+--+--+
        |       |       |         |    |     |         |  |  |  |  |
        +-------+-------+         +----+-----+         +--+--+--+--+
            NC                      KC                  NR  = a panel; NC columns a block

   Threads take blocks of C, MC x NC or less, and share nothing on the way: packing B again for each
   block of rows costs little beside the MC multiply-adds that each of its numbers goes into, and
   nobody waits. A block of k is summed from zero in registers and then added to C: the order of
   summation is fixed by KC alone. */

/* The tile's sums fill the vector registers: 32 of 64 bytes (AVX-512), 16 of 32 (AVX), 32 of 16
   (aarch64), elsewhere 16 of 16 or more. */
#    if defined __AVX512F__
enum { VEC_BYTES = 64, MR = 14, NV = 2 };
#    elif defined __AVX__
enum { VEC_BYTES = 32, MR = 6, NV = 2 };
#    elif defined __aarch64__
enum { VEC_BYTES = 16, MR = 8, NV = 3 };
#    else
enum { VEC_BYTES = 16, MR = 4, NV = 2 };
#    endif
enum {
    VL = VEC_BYTES / sizeof(real),
    NR = NV * VL,
    KC = BLOCK_OF(256, 3),
    MC = BLOCK_OF(504, MR) / MR * MR,
    NC = BLOCK_OF(512, NR) / NR * NR
};

/* From one panel to the next. Without the extra cache line the panels would start a multiple of
   2 KB apart and drive each other out of the first-level cache while they are filled. */
enum { LINE = 64 / sizeof(real), PANEL_A = KC * MR + LINE, PANEL_B = KC * NR + LINE };

typedef real vec __attribute__((vector_size(VEC_BYTES)));
typedef real vec_anywhere __attribute__((vector_size(VEC_BYTES), aligned(sizeof(real)), may_alias));
#    define INLINE static inline __attribute__((always_inline))

/* A thread's scratch memory: the panels of a block of A, then those of a block of B. */
enum { TINY_A = BLOCK_OF(0, 32 * VL) }; // room for thin products (below), too
enum { BLOCK_A = (MC / MR * PANEL_A + TINY_A + 15) / 16 * 16, BLOCK_B = NC / NR * PANEL_B };
enum { MATMUL_SCRATCH = (BLOCK_A + BLOCK_B + 15) / 16 * 16 };

/* The part of m that begins at (i, j). */
INLINE Matrix part(Matrix m, Size i, Size j, Size rows, Size cols) {
    return (Matrix){element(m, i, j), rows, cols, m.row_step, m.col_step};
}

/* out[k * out_step + i] = x (i, k) for VL x VL numbers, in registers: zipping vectors i and
   i + VL / 2 rotates the bits of (row, lane) by one place, and after log2(VL) rounds row and lane
   have changed places. Rows that x has not are taken to be like its last. */
#    if !defined IGPT_DOUBLE && defined __has_builtin
#        if __has_builtin(__builtin_shufflevector)
#            if defined __AVX512F__
#                define ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#                define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#            elif defined __AVX__
#                define ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#                define ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#            else
#                define ZIP_LOW 0, 4, 1, 5
#                define ZIP_HIGH 2, 6, 3, 7
#            endif
#        endif
#    endif

INLINE void transpose(real *out, Size out_step, Matrix x) {
    vec from[VL];
    for (int i = 0; i < VL; i++) from[i] = *(const vec_anywhere *)element(x, min(i, x.rows - 1), 0);
#    ifdef ZIP_LOW
    vec to[VL];
    for (int round = 1; round < VL; round *= 2) {
        for (int i = 0; i < VL / 2; i++) {
            to[2 * i] = __builtin_shufflevector(from[i], from[i + VL / 2], ZIP_LOW);
            to[2 * i + 1] = __builtin_shufflevector(from[i], from[i + VL / 2], ZIP_HIGH);
        }
        for (int i = 0; i < VL; i++) from[i] = to[i];
    }
    for (int k = 0; k < VL; k++) *(vec_anywhere *)(out + k * out_step) = from[k];
#    else
    for (int k = 0; k < VL; k++)
        for (int i = 0; i < VL; i++) out[k * out_step + i] = from[i][k];
#    endif
}

/* Copy one panel: out[k * width + i] = x (i, k) for x's rows, `width` at most; what the panel holds
   beyond them reaches no result. Where width is no multiple of VL, a row's surplus lanes are
   overwritten by the next row's first, which come later; the last row's fall into the gap between
   panels. */
INLINE void pack(real *out, const Size width, Matrix x) {
    Size k = 0;
    for (; x.col_step == 1 && k + VL <= x.cols; k += VL)
        for (Size i = (x.rows - 1) / VL * VL; i >= 0; i -= VL)
            transpose(out + k * width + i, width, part(x, i, k, x.rows - i, VL));
    for (; k < x.cols; k++)
        for (Size i = 0; i < x.rows; i++) out[k * width + i] = *element(x, i, k);
}

/* Copy all panels of x, `panel` numbers from one to the next. Where a column of x is a run of
   memory that crosses all panels, it is read in one go: memory delivers runs, not columns. */
INLINE void pack_block(real *out, const Size width, const Size panel, Matrix x) {
    Size whole = x.row_step == 1 ? x.rows / width : 0;
    for (Size k = 0; k < x.cols && whole; k++) {
        const real *from = element(x, 0, k);
        for (Size p = 0; p < whole; p++)
            memcpy(out + p * panel + k * width, from + p * width, width * sizeof *out);
    }
    for (Size p = whole; p * width < x.rows; p++)
        pack(out + p * panel, width, part(x, p * width, 0, min(width, x.rows - p * width), x.cols));
}

/* The register tile: C (rows, NR) = or += A B for a panel of each. `rows` and A's row_step are
   constants in each call below: the loops unroll and sum[][] becomes registers. */
INLINE void tile(const int rows, Matrix c, Matrix a, const real *b, int accumulate) {
    vec sum[MR][NV];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < NV; j++) sum[i][j] = (vec){0};
    Size k = a.cols;
    do { // k is not 0: said so, gcc keeps sum[][] in registers throughout
        const vec_anywhere *row = (const vec_anywhere *)b;
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < NV; j++) sum[i][j] += a.data[i * a.row_step] * row[j];
        a.data += a.col_step;
        b += NR;
    } while (--k > 0);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < NV; j++) {
            vec_anywhere *out = (vec_anywhere *)(c.data + i * c.row_step + j * VL);
            if (accumulate) sum[i][j] += *out;
            *out = sum[i][j];
        }
}

INLINE void tile_of_height(Matrix c, Matrix a, const real *b, int accumulate) {
#    define HEIGHT(n)                                                                              \
    case n: tile(n < MR ? n : MR, c, a, b, accumulate); break;
    switch (c.rows) { // below MR: a matrix's last rows, and attention's even tiles; never above
        HEIGHT(1)
        HEIGHT(2)
        HEIGHT(3)
        HEIGHT(4)
        HEIGHT(5)
        HEIGHT(6)
        HEIGHT(7) HEIGHT(8) HEIGHT(9) HEIGHT(10) HEIGHT(11) HEIGHT(12) HEIGHT(13) HEIGHT(14)
    }
}

/* A tile anywhere in C. One that hangs over the right edge is computed in `edge`, from where what
   lies in C is copied. A is either a panel, a step of k side by side (row_step 1), or what tiles
   have written, rows of NR numbers along k (row_step NR), which attention multiplies as it is. */
static void tile_at(Matrix c, Matrix a, const real *b, int accumulate) {
    real edge[MR * NR];
    int whole = c.cols == NR, add = whole && accumulate;
    Matrix to = whole ? c : matrix(edge, c.rows, NR);
    if (a.row_step == 1)
        tile_of_height(to, (Matrix){a.data, c.rows, a.cols, 1, a.col_step}, b, add);
    else tile_of_height(to, (Matrix){a.data, c.rows, a.cols, NR, 1}, b, add);
    for (Size i = 0; i < c.rows && !whole; i++)
        for (Size j = 0; j < c.cols; j++) {
            real *out = c.data + i * c.row_step + j;
            *out = accumulate ? *out + edge[i * NR + j] : edge[i * NR + j];
        }
}

/* All tiles of C (M, N). `a` is the first panel of A, MR rows; the others follow a_panel apart,
   B's b_panel apart. */
static void tiles(Matrix c, Matrix a, Size a_panel, const real *b, Size b_panel, int accumulate) {
    for (Size j = 0; j < c.cols; j += NR, b += b_panel)
        for (Size i = 0; i < c.rows; i += MR) {
            Matrix panel = a;
            panel.data += i / MR * a_panel;
            tile_at(part(c, i, j, min(MR, c.rows - i), min(NR, c.cols - j)), panel, b, accumulate);
        }
}

/* One block of C: at most MC x NC elements over all of K. */
static void multiply_block(real *scratch, Matrix c, Matrix a, Matrix b, int accumulate) {
    real *packed_a = scratch, *packed_b = scratch + BLOCK_A;
    for (Size k0 = 0; k0 < a.cols; k0 += KC) {
        Size k = min(KC, a.cols - k0);
        pack_block(packed_a, MR, PANEL_A, part(a, 0, k0, a.rows, k));
        pack_block(packed_b, NR, PANEL_B, transposed(part(b, k0, 0, k, b.cols)));
        tiles(c, (Matrix){packed_a, MR, k, 1, MR}, PANEL_A, packed_b, PANEL_B, accumulate || k0);
    }
}

/* Few rows (sampling a few pictures): packing B would cost as much as reading it. Its rows are read
   where they lie, once, and added into sums that stay in the first-level cache: eight at a time,
   or, for one row of A and a B too large for caches, one, since memory delivers a single run
   fastest. Summed in the tiles' order: a picture does not depend on those drawn with it. */
enum { THIN_M = 16, THIN_SUMS = BLOCK_OF(4096, 16 * VL), THIN_ROWS = BLOCK_OF(8, 2) };
_Static_assert(THIN_SUMS + THIN_M * THIN_ROWS <= BLOCK_A, "thin products have too little memory");

/* sums (M, width) += x (M, rows) b (rows, n); `rows` is a constant in each call. */
INLINE void thin_rows(const int rows, real *sums, Size width, const real *x, Size M, Matrix b) {
    Size j = 0;
    for (; j + VL <= b.cols; j += VL) {
        vec y[THIN_ROWS];
        for (int k = 0; k < rows; k++) y[k] = *(const vec_anywhere *)(b.data + k * b.row_step + j);
        for (Size i = 0; i < M; i++) {
            vec_anywhere *sum = (vec_anywhere *)(sums + i * width + j);
            vec s = *sum;
#    ifndef __clang__ // at -O2, too: on some processors gcc fuses no sum that goes round a loop
#        pragma GCC unroll 8
#    endif
            for (int k = 0; k < rows; k++) s += x[i * rows + k] * y[k];
            *sum = s;
        }
    }
    for (Size i = 0; i < M; i++) // columns innermost: a sum over k could be reordered
        for (int k = 0; k < rows; k++)
            for (Size r = j; r < b.cols; r++)
                sums[i * width + r] += x[i * rows + k] * b.data[k * b.row_step + r];
}

static void multiply_thin(real *scratch, Matrix c, Matrix a, Matrix b, int accumulate) {
    real *sums = scratch, *x = scratch + THIN_SUMS; // (M, width), (M, THIN_ROWS)
    Size M = c.rows, width = THIN_SUMS / M / VL * VL;
    int from_memory = M == 1 && (double)b.rows * (double)b.cols >= 1 << 17;
    for (Size j0 = 0; j0 < c.cols; j0 += width)
        for (Size k0 = 0; k0 < a.cols; k0 += KC) {
            Size n = min(width, c.cols - j0), k1 = min(a.cols, k0 + KC);
            for (Size i = 0; i < M; i++) memset(sums + i * width, 0, n * sizeof *sums);
            for (Size k = k0, rows; k < k1; k += rows) {
                rows = from_memory || k1 - k < THIN_ROWS ? 1 : THIN_ROWS;
                for (Size i = 0; i < M; i++)
                    for (Size r = 0; r < rows; r++) x[i * rows + r] = *element(a, i, k + r);
                Matrix y = part(b, k, j0, rows, n);
                if (rows > 1) thin_rows(THIN_ROWS, sums, width, x, M, y);
                else thin_rows(1, sums, width, x, M, y);
            }
            for (Size i = 0; i < M; i++) {
                real *out = c.data + i * c.row_step + j0, *sum = sums + i * width;
                for (Size j = 0; j < n; j++) out[j] = accumulate || k0 ? out[j] + sum[j] : sum[j];
            }
        }
}

/* The thin product on all threads. Best is to share out the blocks of k, each of which lies in one
   run of memory, and to add up their products afterwards, in the order of one thread. Where this
   leaves threads idle, or the products have no room, the columns are shared out instead. */
static void multiply_thin_shared(Team team, Matrix c, Matrix a, Matrix b, int accumulate) {
    Size M = c.rows, N = c.cols, K = a.cols, blocks = ceil_div(K, KC);
    Size share = round_up(ceil_div(N, team.threads), VL);
    real *parts = team.memory + BLOCK_A; // (blocks, M, N) where panels of B would be
    int uneven = blocks % team.threads && blocks < 4 * team.threads;
    if (uneven || blocks * M * N > BLOCK_B) {
#    pragma omp parallel for schedule(static) num_threads(team.threads)
        for (Size j = 0; j < N; j += share) {
            Size n = min(share, N - j);
            multiply_thin(scratch_of_thread(team), part(c, 0, j, M, n), a, part(b, 0, j, K, n),
                          accumulate);
        }
        return;
    }
#    pragma omp parallel num_threads(team.threads)
    {
#    pragma omp for schedule(static)
        for (Size p = 0; p < blocks; p++) {
            Size k0 = p * KC, k = min(KC, K - k0);
            multiply_thin(scratch_of_thread(team), matrix(parts + p * M * N, M, N),
                          part(a, 0, k0, M, k), part(b, k0, 0, k, N), 0);
        }
#    pragma omp for schedule(static)
        for (Size j0 = 0; j0 < N; j0 += share)
            for (Size i = 0; i < M; i++)
                for (Size p = 0; p < blocks; p++)
                    for (Size j = j0; j < min(N, j0 + share); j++) {
                        real *out = c.data + i * c.row_step + j, sum = parts[(p * M + i) * N + j];
                        *out = accumulate || p ? *out + sum : sum;
                    }
    }
}

void matmul(Team team, Matrix c, Matrix a, Matrix b, int accumulate) {
    Size M = c.rows, N = c.cols, K = a.cols;
    if ((double)M * (double)N * (double)K < 1e5) team.threads = 1;
    int threads = team.threads;
    if (M <= THIN_M && b.col_step == 1) {
        if (threads == 1) multiply_thin(team.memory, c, a, b, accumulate);
        else multiply_thin_shared(team, c, a, b, accumulate);
        return;
    }
    /* As many blocks as the threads can share evenly: of rows, or of columns where rows are few. */
    Size row_blocks = ceil_div(M, MC), column_blocks = ceil_div(N, NC);
    if (M >= threads * MC / 4) row_blocks = round_up(row_blocks, threads);
    else column_blocks = round_up(column_blocks, threads);
    Size m = round_up(ceil_div(M, row_blocks), MR), n = round_up(ceil_div(N, column_blocks), NR);
#    pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads) if (threads > 1)
    for (Size j = 0; j < N; j += n)
        for (Size i = 0; i < M; i += m) {
            Size rows = min(m, M - i), cols = min(n, N - j);
            multiply_block(scratch_of_thread(team), part(c, i, j, rows, cols),
                           part(a, i, 0, rows, K), part(b, 0, j, K, cols), accumulate);
        }
}
#endif // IGPT_PLAIN

Team team_new(void) {
    Team team = {threads_get(), MATMUL_SCRATCH, NULL};
    team.memory = zalloc(team.threads * team.each, sizeof(real));
    return team;
}

/* ==== 3 layers ==================================================================================
   The parts of a block (paper, section 2.2), each a plain function over raw pointers, its backward
   pass directly below it. The idea to take away: rows, heads or blocks of fixed size belong to one
   thread each, so every sum has one order, whatever the number of threads. */

/* RMS norm (the released model's "layer norm": neither mean-centred nor shifted).
   n_i = x_i s g_i with s = 1 / sqrt(mean(x^2) + eps). Where the mean overflows, s would be 0 and
   the row pass for zeros: it becomes NaN, so that a run that diverges shows. */
void rms_forward(real *out, real *inv, const real *x, const real *gain, Size rows, Size d) {
#pragma omp parallel for schedule(static)
    for (Size r = 0; r < rows; r++) {
        const real *in = x + r * d;
        real *o = out + r * d, mean = dot(in, in, d) / (real)d;
        real s = isfinite(mean) ? 1 / (real)sqrt(mean + 1e-5) : (real)NAN;
        for (Size i = 0; i < d; i++) o[i] = in[i] * s * gain[i];
        inv[r] = s;
    }
}

/* dx_i += s g_i dn_i - x_i s^3 / d * sum_j(dn_j g_j x_j);  dg_i += sum over rows of dn_i x_i s.
   The second sum runs across rows: blocks of fixed size keep partial sums, added in order. */
enum { RMS_BLOCK = BLOCK_OF(64, 3) };

Size rms_partials(Size rows) { return ceil_div(rows, RMS_BLOCK); }

void rms_backward(real *dx, real *dgain, real *partial, const real *dout, const real *x,
                  const real *gain, const real *inv, Size rows, Size d) {
    Size blocks = rms_partials(rows);
#pragma omp parallel for schedule(static)
    for (Size block = 0; block < blocks; block++) {
        real *sum = partial + block * d;
        memset(sum, 0, d * sizeof *sum);
        for (Size r = block * RMS_BLOCK; r < min(rows, (block + 1) * RMS_BLOCK); r++) {
            const real *in = x + r * d, *dn = dout + r * d;
            real *dr = dx + r * d, s = inv[r], product = 0;
#pragma omp simd reduction(+ : product)
            for (Size i = 0; i < d; i++) product += dn[i] * gain[i] * in[i];
            product *= s * s * s / (real)d;
#pragma omp simd
            for (Size i = 0; i < d; i++) {
                dr[i] += s * gain[i] * dn[i] - product * in[i];
                sum[i] += dn[i] * in[i] * s;
            }
        }
    }
    for (Size block = 0; block < blocks; block++)
        for (Size i = 0; i < d; i++) dgain[i] += partial[block * d + i];
}

/* Which row of wte is the content at place r of (B, T): K is sos, -1 nothing (masked). */
static Size content_at(const Batch *batch, Size r, Size T, Size K) {
    if (batch->mask) return batch->mask[r] ? -1 : batch->tokens[r];
    return r % T ? batch->tokens[r - 1] : K;
}

void embed_forward(real *h, const Batch *batch, const real *wte, const real *wpe, Size T, Size d,
                   Size K, Size first, Size n) {
#pragma omp parallel for schedule(static)
    for (Size r = 0; r < batch->B * n; r++) {
        Size t = first + r % n, row = content_at(batch, r / n * T + t, T, K);
        const real *position = wpe + t * d, *content = wte + (row < 0 ? 0 : row) * d;
        real *o = h + r * d;
        for (Size i = 0; i < d; i++) o[i] = row < 0 ? position[i] : content[i] + position[i];
    }
}

/* dwte[content] += dh, dwpe[t] += dh. Rows of wte collide, so threads own columns instead. */
void embed_backward(real *dwte, real *dwpe, const real *dh, const Batch *batch, Size T, Size d,
                    Size K) {
    enum { COLUMNS = BLOCK_OF(32, 3) };
#pragma omp parallel for schedule(static)
    for (Size i0 = 0; i0 < d; i0 += COLUMNS) {
        Size n = min(COLUMNS, d - i0);
        for (Size r = 0; r < batch->B * T; r++) {
            Size row = content_at(batch, r, T, K);
            const real *in = dh + r * d + i0;
            real *position = dwpe + r % T * d + i0, *content = dwte + (row < 0 ? 0 : row) * d + i0;
            for (Size i = 0; i < n; i++) position[i] += in[i];
            for (Size i = 0; i < n && row >= 0; i++) content[i] += in[i];
        }
    }
}

/* Turn row[0..n) of scores into exp(score - max); returns their sum. *lse: the sum's log + max. */
static real softmax_row(real *row, Size n, real *lse) {
    real max = row_max(row, n), sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Size j = 0; j < n; j++) {
        row[j] = real_exp(row[j] - max);
        sum += row[j];
    }
    *lse = max + (real)log(sum);
    return sum;
}

/* Attention: P = softmax(Q K' / sqrt(hs)), out = P V, for each image and head. Threads share out
   the B * H pairs of image and head, which `head` numbers below. */

/* One head's rows (T, hs) of x, whose rows are `width` long: of q, k, v (3d) or of out (d). */
static Matrix head_of(const Attention *a, const real *x, Size width, Size head) {
    Size hs = a->d / a->H;
    return (Matrix){(real *)x + head / a->H * a->T * width + head % a->H * hs, a->T, hs, width, 1};
}

void attention_plain_forward(const Attention *a, real *out, real *lse, const real *qkv) {
    Size T = a->T, d = a->d, hs = d / a->H;
    real scale = 1 / (real)sqrt((double)hs);
#pragma omp parallel for schedule(dynamic) num_threads(a->team.threads)
    for (Size head = 0; head < a->B * a->H; head++) {
        Matrix q = head_of(a, qkv, 3 * d, head), k = head_of(a, qkv + d, 3 * d, head);
        Matrix v = head_of(a, qkv + 2 * d, 3 * d, head), o = head_of(a, out, d, head);
        real *p = scratch_of_thread(a->team); // (T)
        for (Size t = 0; t < T; t++) {
            Size seen = a->causal ? t + 1 : T;
            for (Size j = 0; j < seen; j++)
                p[j] = scale * dot(element(q, t, 0), element(k, j, 0), hs);
            real sum = softmax_row(p, seen, &lse[head * T + t]);
            for (Size i = 0; i < hs; i++) *element(o, t, i) = 0;
            for (Size j = 0; j < seen; j++)
                for (Size i = 0; i < hs; i++) *element(o, t, i) += p[j] / sum * *element(v, j, i);
        }
    }
}

/* With dP = dout V' and D_i = sum_j(P_ij dP_ij) = dout_i . out_i:  dS = P (dP - D) / sqrt(hs),
   dQ = dS K, dK = dS' Q, dV = P' dout. */
void attention_plain_backward(const Attention *a, real *dqkv, const real *dout, const real *qkv,
                              const real *out, const real *lse) {
    Size T = a->T, d = a->d, hs = d / a->H;
    real scale = 1 / (real)sqrt((double)hs);
    memset(dqkv, 0, (a->B * T * 3 * d) * sizeof *dqkv);
#pragma omp parallel for schedule(dynamic) num_threads(a->team.threads)
    for (Size head = 0; head < a->B * a->H; head++) {
        Matrix dq = head_of(a, dqkv, 3 * d, head), q = head_of(a, qkv, 3 * d, head);
        Matrix g = head_of(a, dout, d, head), o = head_of(a, out, d, head);
        for (Size t = 0; t < T; t++) {
            const real *q_t = element(q, t, 0), *g_t = element(g, t, 0);
            real *dq_t = element(dq, t, 0), D = dot(g_t, element(o, t, 0), hs);
            for (Size j = 0; j < (a->causal ? t + 1 : T); j++) {
                const real *k = element(q, j, d), *v = k + d; // a row of qkv is [q | k | v]
                real *dk = element(dq, j, d), *dv = dk + d;
                real p = real_exp(scale * dot(q_t, k, hs) - lse[head * T + t]);
                real ds = scale * p * (dot(g_t, v, hs) - D);
                for (Size i = 0; i < hs; i++) {
                    dq_t[i] += ds * k[i];
                    dk[i] += ds * q_t[i];
                    dv[i] += p * g_t[i];
                }
            }
        }
    }
}

#ifdef IGPT_PLAIN
Size attention_scratch(Size T, Size hs) { return (void)hs, round_up(T, 16); }

void attention_forward(const Attention *a, real *out, real *lse, const real *qkv) {
    attention_plain_forward(a, out, lse, qkv);
}

void attention_backward(const Attention *a, real *dqkv, const real *dout, const real *qkv,
                        const real *out, const real *lse) {
    attention_plain_backward(a, dqkv, dout, qkv, out, lse);
}
#else

/* The same, fast: by matmul's tiles. P would be T x T. Only a band of it exists at a time, and of a
   causal one only the rows that are seen (#): memory and time for the rest are never spent.

          forward: NR queries side by side          backward: NR keys side by side
                   queries                                   keys
                  +-----+--+-------+                        +-----+--+-------+
                  | \   |##|       |                        | \   |  |       |
             keys |   \ |##|       |                queries |   \ |  |       |
                  |     |\#|       |                        |     |\ |       |
                  |     |  |\      |                        |     |##|\      |
                  |     |  |  \    |                        |     |##|  \    |
                  +-----+--+-------+                        +-----+--+-------+

          p = K q'             (keys, NR)           p = Q k', dp = dout v'   (queries, NR)
          p = softmax of its columns                p = exp(p - lse), ds = p (dp - D)
          out' = V' p          (hs, NR)             dk' = Q' ds, dv' = dout' p   (hs, NR)
                                                    dQ += ds k               (queries, hs)

   A band is as wide as a tile: what one product's tiles leave is, as it stands, the next one's
   panel of B (or its A, in rows of NR). Only inputs are packed, most of them once for a head. */
typedef struct {
    real *q, *v, *dout;                      // (T, hs)
    real *q_panels, *k_panels, *dout_panels; // q, k, dout packed as A: panels of MR rows
    real *q_band, *k_band, *v_band;          // (hs, NR) q', k', v'
    real *k_columns;                         // (NR, hs) k packed as B: panels of NR columns
    real *p, *ds;                            // (T, NR)
    real *product;                           // (hs, NR) before it is transposed
    real *dq, *D;                            // (T, hs), (T)
} Head;

/* From one panel of A to the next, with room for the surplus of the last row. */
static Size head_panel(Size hs) { return hs * MR + LINE; }

/* Lay out what forward and backward need of a head; returns how many reals that is. */
static Size head_place(Head *s, real *base, Size T, Size hs) {
    Size used = 0;
    real **rows[] = {&s->q, &s->v, &s->dout, &s->dq};
    real **panels[] = {&s->q_panels, &s->k_panels, &s->dout_panels};
    real **bands[] = {&s->q_band, &s->k_band, &s->v_band, &s->product};
    for (int i = 0; i < 4; i++) *rows[i] = carve(base, &used, T * hs);
    for (int i = 0; i < 3; i++) *panels[i] = carve(base, &used, ceil_div(T, MR) * head_panel(hs));
    for (int i = 0; i < 4; i++) *bands[i] = carve(base, &used, hs * NR);
    s->k_columns = carve(base, &used, ceil_div(hs, NR) * NR * NR);
    s->p = carve(base, &used, T * NR);
    s->ds = carve(base, &used, T * NR);
    s->D = carve(base, &used, T);
    return used;
}

Size attention_scratch(Size T, Size hs) {
    Head s;
    Size used = head_place(&s, NULL, T, hs);
    return used > MATMUL_SCRATCH ? used : MATMUL_SCRATCH;
}

/* rows (T, hs) = x, whose rows lie far apart. */
static void head_gather(real *rows, Matrix x) {
    for (Size t = 0; t < x.rows; t++)
        memcpy(rows + t * x.cols, element(x, t, 0), x.cols * sizeof *rows);
}

/* scores (n, NR) = x (n, hs), in panels, times band (hs, NR). */
static void head_scores(real *scores, const real *panels, const real *band, Size n, Size hs) {
    Matrix x = {(real *)panels, MR, hs, 1, MR};
    tiles(matrix(scores, n, NR), x, head_panel(hs), band, 0, 0);
}

/* out (columns, hs) = p' x, p (n, NR) of which `columns` count, x (n, hs). As it stands p is a
   panel of B, so tiles make the transpose, product (hs, NR) = x' p, which is then turned: whole
   vectors in registers, the last rows and columns number by number. */
static void head_sums(Matrix out, Matrix x, const real *p, real *product) {
    Size n = x.rows, hs = x.cols, height = ceil_div(hs, ceil_div(hs, MR)); // tiles of even height
    for (Size i = 0; i < hs; i += height)
        for (Size k = 0; k < n; k += KC) {
            Matrix c = matrix(product + i * NR, min(height, hs - i), NR);
            tile_at(c, transposed(part(x, k, i, min(KC, n - k), c.rows)), p + k * NR, k > 0);
        }
    Size whole = hs / VL * VL, j = 0;
    for (; j + VL <= out.rows; j += VL)
        for (Size i = 0; i < whole; i += VL)
            transpose(element(out, j, i), out.row_step, matrix(product + i * NR + j, VL, NR));
    for (Size k = 0; k < out.rows; k++)
        for (Size i = k < j ? whole : 0; i < hs; i++) *element(out, k, i) = product[i * NR + k];
}

/* Each column of p (n, NR) becomes exp(scale * (score - max)), its sum and the log-sum-exp of its
   scaled scores go to sum and lse. Column j does not see the rows after first + j; where first = n
   it sees all. */
static void softmax_columns(real *p, Size n, Size first, real scale, real *sum, real *lse) {
    real max[NR];
    for (Size i = first; i < n; i++)
        for (Size j = 0; j < i - first; j++) p[i * NR + j] = -INFINITY;
    for (Size j = 0; j < NR; j++) max[j] = p[j], sum[j] = 0;
    for (Size i = 1; i < n; i++)
        for (Size j = 0; j < NR; j++) max[j] = p[i * NR + j] > max[j] ? p[i * NR + j] : max[j];
    for (Size i = 0; i < n; i++)
#    pragma omp simd
        for (Size j = 0; j < NR; j++) {
            real e = real_exp(scale * (p[i * NR + j] - max[j]));
            p[i * NR + j] = e;
            sum[j] += e;
        }
    for (Size j = 0; j < NR; j++) lse[j] = scale * max[j] + (real)log(sum[j]);
}

void attention_forward(const Attention *a, real *out, real *lse, const real *qkv) {
    Size T = a->T, d = a->d, hs = d / a->H;
    real scale = 1 / (real)sqrt((double)hs);
#    pragma omp parallel for schedule(dynamic) num_threads(a->team.threads)
    for (Size head = 0; head < a->B * a->H; head++) {
        Matrix q = head_of(a, qkv, 3 * d, head), o = head_of(a, out, d, head);
        real sum[NR], log_sum[NR];
        Head s;
        head_place(&s, scratch_of_thread(a->team), T, hs);
        pack_block(s.k_panels, MR, head_panel(hs), head_of(a, qkv + d, 3 * d, head));
        head_gather(s.v, head_of(a, qkv + 2 * d, 3 * d, head));
        for (Size i0 = 0; i0 < T; i0 += NR) {
            Size queries = min(NR, T - i0), keys = a->causal ? i0 + queries : T;
            Matrix o_band = part(o, i0, 0, queries, hs);
            pack(s.q_band, NR, part(q, i0, 0, queries, hs));
            head_scores(s.p, s.k_panels, s.q_band, keys, hs);
            softmax_columns(s.p, keys, a->causal ? i0 : keys, scale, sum, log_sum);
            head_sums(o_band, matrix(s.v, keys, hs), s.p, s.product);
            for (Size j = 0; j < queries; j++) {
                real *o_row = element(o_band, j, 0), inverse = 1 / sum[j];
                lse[head * T + i0 + j] = log_sum[j];
                for (Size i = 0; i < hs; i++) o_row[i] *= inverse;
            }
        }
    }
}

/* p and ds (n, NR) come as scores and dp and become P and dS. Row i sees the columns up to
   i - first; first = -NR: it sees all. */
static void softmax_columns_backward(real *p, real *ds, Size n, Size first, real scale,
                                     const real *lse, const real *D) {
    for (Size i = 0; i < n; i++, p += NR, ds += NR) {
#    pragma omp simd
        for (Size j = 0; j < NR; j++) {
            p[j] = real_exp(scale * p[j] - lse[i]);
            ds[j] = scale * p[j] * (ds[j] - D[i]);
        }
        for (Size j = i < first ? 0 : i - first + 1; j < NR; j++) p[j] = ds[j] = 0;
    }
}

/* A thread adds its bands to dQ in their order; the first, seen by all queries, starts it. */
void attention_backward(const Attention *a, real *dqkv, const real *dout, const real *qkv,
                        const real *out, const real *lse) {
    Size T = a->T, d = a->d, hs = d / a->H;
    real scale = 1 / (real)sqrt((double)hs);
#    pragma omp parallel for schedule(dynamic) num_threads(a->team.threads)
    for (Size head = 0; head < a->B * a->H; head++) {
        Matrix q = head_of(a, qkv, 3 * d, head), dq = head_of(a, dqkv, 3 * d, head);
        Matrix g = head_of(a, dout, d, head), o = head_of(a, out, d, head);
        Head s;
        head_place(&s, scratch_of_thread(a->team), T, hs);
        head_gather(s.q, q);
        head_gather(s.dout, g);
        pack_block(s.q_panels, MR, head_panel(hs), q);
        pack_block(s.dout_panels, MR, head_panel(hs), g);
        for (Size t = 0; t < T; t++) s.D[t] = dot(element(g, t, 0), element(o, t, 0), hs);
        for (Size j0 = 0; j0 < T; j0 += NR) {
            Size keys = min(NR, T - j0), i0 = a->causal ? j0 / MR * MR : 0, n = T - i0;
            Size skip = i0 / MR * head_panel(hs);
            Matrix k = part(q, j0, d, keys, hs), v = part(q, j0, 2 * d, keys, hs); // behind q
            pack(s.k_band, NR, k);
            pack(s.v_band, NR, v);
            pack_block(s.k_columns, NR, NR * NR, transposed(k));
            head_scores(s.p, s.q_panels + skip, s.k_band, n, hs);
            head_scores(s.ds, s.dout_panels + skip, s.v_band, n, hs);
            softmax_columns_backward(s.p, s.ds, n, a->causal ? j0 - i0 : -NR, scale,
                                     lse + head * T + i0, s.D + i0);
            head_sums(part(dq, j0, d, keys, hs), matrix(s.q + i0 * hs, n, hs), s.ds, s.product);
            head_sums(part(dq, j0, 2 * d, keys, hs), matrix(s.dout + i0 * hs, n, hs), s.p,
                      s.product);
            tiles(matrix(s.dq + i0 * hs, n, hs), (Matrix){s.ds, MR, keys, NR, 1}, MR * NR,
                  s.k_columns, NR * NR, j0 > 0);
        }
        for (Size t = 0; t < T; t++) memcpy(element(dq, t, 0), s.dq + t * hs, hs * sizeof *s.dq);
    }
}
#endif // IGPT_PLAIN

/* Sampling: the attention of position t alone, qkv (B, 3d) to out (B, d). Its key and value join
   those of the positions before it, keys (B, H, hs, T) and values (B, H, T, hs). In this layout
   scores are a sum of rows of keys, and the output is a sum of rows of values. */
static void attention_step(const Attention *a, real *out, const real *qkv, real *keys, real *values,
                           Size t) {
    Size T = a->T, d = a->d, H = a->H, hs = d / H;
    real scale = 1 / (real)sqrt((double)hs);
#pragma omp parallel for schedule(static) num_threads(a->team.threads)
    for (Size head = 0; head < a->B * H; head++) {
        real *k = keys + head * T * hs, *v = values + head * T * hs;
        real *p = scratch_of_thread(a->team), lse; // (T)
        const real *q = qkv + head / H * 3 * d + head % H * hs;
        real *o = out + head / H * d + head % H * hs;
        for (Size i = 0; i < hs; i++) k[i * T + t] = q[d + i];
        memcpy(v + t * hs, q + 2 * d, hs * sizeof *v);
        memset(p, 0, (t + 1) * sizeof *p);
        for (Size i = 0; i < hs; i++)
#pragma omp simd
            for (Size j = 0; j <= t; j++) p[j] += scale * q[i] * k[i * T + j];
        real inverse = 1 / softmax_row(p, t + 1, &lse);
        memset(o, 0, hs * sizeof *o);
        for (Size j = 0; j <= t; j++)
#pragma omp simd
            for (Size i = 0; i < hs; i++) o[i] += p[j] * v[j * hs + i];
        for (Size i = 0; i < hs; i++) o[i] *= inverse;
    }
}

/* The activation, "quick GELU": g = u sigmoid(1.702 u). */
void gelu_forward(real *g, const real *u, Size rows, Size width) {
#pragma omp parallel for schedule(static)
    for (Size r = 0; r < rows; r++) {
        const real *in = u + r * width;
        real *o = g + r * width;
#pragma omp simd
        for (Size i = 0; i < width; i++) o[i] = in[i] * (1 / (1 + real_exp((real)-1.702 * in[i])));
    }
}

/* dg/du = s + 1.702 u s (1 - s), s = sigmoid(1.702 u). s gives g too: one pass serves both. */
void gelu_backward(real *du, real *g, const real *u, Size rows, Size width) {
#pragma omp parallel for schedule(static)
    for (Size r = 0; r < rows; r++) {
        const real *in = u + r * width;
        real *o = g + r * width, *dr = du + r * width;
#pragma omp simd
        for (Size i = 0; i < width; i++) {
            real s = 1 / (1 + real_exp((real)-1.702 * in[i]));
            o[i] = in[i] * s;
            dr[i] *= s + (real)1.702 * o[i] * (1 - s);
        }
    }
}

/* Cross entropy of a softmax: nll = log(sum_k exp(l_k)) - l_target. */
void cross_entropy_forward(real *probs, real *nll, const uint16_t *targets, Size rows, Size K) {
#pragma omp parallel for schedule(static)
    for (Size r = 0; r < rows; r++) {
        real *p = probs + r * K, logit = p[targets[r]], lse;
        real inverse = 1 / softmax_row(p, K, &lse);
        for (Size k = 0; k < K; k++) p[k] *= inverse;
        nll[r] = lse - logit;
    }
}

/* d nll / d l_k = p_k - [k = target]. */
void cross_entropy_backward(real *probs, const uint16_t *targets, const real *weight, Size rows,
                            Size K) {
#pragma omp parallel for schedule(static)
    for (Size r = 0; r < rows; r++) {
        real *p = probs + r * K;
        p[targets[r]] -= 1;
        for (Size k = 0; k < K; k++) p[k] *= weight[r];
    }
}

/* ==== 4 model ===================================================================================
   The network of the paper's section 2.2, as OpenAI released it. Two ideas: one list names every
   tensor, and counting, initialising, saving, loading, gradient checks and `info` all walk it; one
   function lays out the activations, and the same function run without memory measures them. */

/* The tensors in the order of the list; LN_1 to MLP_PROJ come once for each layer. */
enum { WTE, WPE, LN_1, C_ATTN, ATTN_PROJ, LN_2, C_FC, MLP_PROJ, LN_F, LM_HEAD, SCORE, N_KINDS };

static int is_causal(const Config *c) { return c->objective == OBJECTIVE_AR; }
static int is_masked(const Config *c) { return c->objective == OBJECTIVE_BERT; }
static Size positions(const Config *c) { return c->n_px * c->n_px; }

int config_check(const Config *c) {
    const char *const names[] = {"n_px", "n_vocab", "n_embd", "n_head", "n_layer", "n_class"};
    const Size sizes[] = {c->n_px, c->n_vocab, c->n_embd, c->n_head, c->n_layer, c->n_class};
    const Size low[] = {1, 2, 1, 1, 1, 0}, high[] = {256, 65535, 16384, 1024, 1024, 65535};
    for (int i = 0; i < 6; i++)
        if (sizes[i] < low[i] || sizes[i] > high[i])
            return fail("%s is %lld, it must lie between %lld and %lld", names[i], sizes[i], low[i],
                        high[i]);
    if (c->n_embd % c->n_head == 0) return 0;
    return fail("n_embd %lld is not divisible by n_head %lld", c->n_embd, c->n_head);
}

/* One tensor more. `name` may hold a %lld for the layer; std < 0: all 1. */
static void tensor_add(Model *m, Size layer, const char *name, Size rows, Size cols, double std,
                       int has_bias) {
    Tensor *t = &m->tensors[m->n_tensors++];
    *t = (Tensor){"", "", rows, cols, m->n_params, std};
    int n = snprintf(t->name, sizeof t->name, name, layer);
    if (has_bias) snprintf(t->bias, sizeof t->bias, "%.*sbias", n - 6, t->name); // for "weight"
    m->n_params += rows * cols;
}

int model_list(Model *m, Config c) {
    *m = (Model){.config = c};
    if (config_check(&c)) return -1;
    m->tensors = zalloc(N_KINDS * c.n_layer, sizeof *m->tensors);
    if (!m->tensors) return -1;
    Size d = c.n_embd;
    double std_qkv = 1 / sqrt((double)d), std_proj = 1 / sqrt((double)d * (double)c.n_layer);
    tensor_add(m, 0, "transformer.wte.weight", c.n_vocab + 1, d, 0.02, 0); // the last row is sos
    tensor_add(m, 0, "transformer.wpe.weight", positions(&c), d, 0.01, 0);
    for (Size l = 0; l < c.n_layer; l++) {
        tensor_add(m, l, "transformer.h.%lld.ln_1.weight", 1, d, -1, 0);
        tensor_add(m, l, "transformer.h.%lld.attn.c_attn.weight", d, 3 * d, std_qkv, 1);
        tensor_add(m, l, "transformer.h.%lld.attn.c_proj.weight", d, d, std_proj, 1);
        tensor_add(m, l, "transformer.h.%lld.ln_2.weight", 1, d, -1, 0);
        tensor_add(m, l, "transformer.h.%lld.mlp.c_fc.weight", d, 4 * d, 0.02, 1);
        tensor_add(m, l, "transformer.h.%lld.mlp.c_proj.weight", 4 * d, d, 0.02, 1);
    }
    tensor_add(m, 0, "transformer.ln_f.weight", 1, d, -1, 0);
    tensor_add(m, 0, "lm_head.weight", c.n_vocab, d, 0, 0);
    if (c.n_class) tensor_add(m, 0, "score.weight", c.n_class, d, 0, 0);
    return 0;
}

/* Two operations for each position and parameter in a matmul: 12 d x d in a block, K x d in
   lm_head. For attention two products of T x T x d, of which a causal mask needs half. */
double model_flops(const Model *m) {
    const Config *c = &m->config;
    double T = (double)positions(c), d = (double)c->n_embd, L = (double)c->n_layer;
    double multiplied = 12 * L * d * d + (double)c->n_vocab * d, attention = 4 * L * T * T * d;
    return 2 * multiplied * T + (is_causal(c) ? attention / 2 : attention);
}

/* A tensor as a matrix, of the parameters or of gradients, which are laid out alike. */
static Matrix tensor(const Model *m, const real *base, int kind, Size layer) {
    enum { OF_BLOCK = MLP_PROJ - LN_1 + 1 };
    if (kind < LN_1) layer = 0;
    if (kind > MLP_PROJ) layer = m->config.n_layer - 1; // behind the last block
    const Tensor *t = &m->tensors[kind + layer * OF_BLOCK];
    return matrix(base + t->offset, t->rows, t->cols);
}

static Matrix weights(const Model *m, int kind, Size layer) {
    return tensor(m, m->params, kind, layer);
}

int model_init(Model *m, Config config) {
    if (model_list(m, config)) return -1;
    m->params = zalloc(m->n_params, sizeof(real));
    m->palette = zalloc(config.n_vocab * 3, sizeof(real));
    m->class_names = zalloc(config.n_class, sizeof *m->class_names);
    int bad = !m->params || !m->palette || !m->class_names;
    for (Size k = 0; k < config.n_class && !bad; k++)
        snprintf(m->class_names[k], sizeof(ClassName), "%lld", k);
    if (bad) model_free(m);
    return bad ? -1 : 0;
}

void model_free(Model *m) {
    free(m->class_names);
    free(m->palette);
    free(m->tensors);
    free(m->params);
    *m = (Model){.n_tensors = 0};
}

void model_randomise(Model *m, uint64_t seed) {
    for (Size i = 0; i < m->n_tensors; i++) {
        const Tensor *t = &m->tensors[i];
        uint64_t stream = stream_of(FOR_INIT, i);
        real *w = m->params + t->offset;
#pragma omp parallel for schedule(static)
        for (Size j = 0; j < t->rows * t->cols; j++)
            w[j] = t->std < 0 ? 1 : (real)(t->std * random_normal(seed, stream, j));
    }
}

/* Activations, in the order in which data passes through a block. T is Activations.T. */
typedef struct {
    real *h;      // (B, T, d) the block's input; layer[L].h is the last block's output
    real *qkv;    // (B, T, 3d)
    real *lse;    // (B, H, T)
    real *att;    // (B, T, d)
    real *a;      // (B, T, d) input plus attention
    real *u;      // (B, T, 4d)
    real *keys;   // (B, H, hs, all positions) of the past, for sampling
    real *values; // (B, H, all positions, hs)
} Layer;

struct Activations {
    int keep;
    Size T; // positions that pass together: all of an image's; in sampling 1
    Size t; // in sampling: which one
    Team team;
    Layer *layer;   // (L + 1); what a pass does not keep is one memory that all of them share
    real *n;        // (B, T, d) the normalised input of whatever matmul comes next
    real *g;        // (B, T, 4d)
    real *inv;      // (B, T) what the last norm multiplied by
    real *logits;   // (B, T, K), then probabilities, then their gradient
    real *nll;      // (B, T), then each position's weight in the loss
    real *features; // (B, d) mean of n^L over positions
    real *classes;  // (B, C) like logits
    /* Of backward. */
    real *dh;      // (B, T, d)
    real *dn;      // (B, T, d)
    real *wide;    // (B, T, 4d) gradient of u; then of qkv (3d) and att (d)
    real *partial; // (rms_partials(B T), d)
};

/* Lay out the activations; returns the bytes that takes. */
static Size activations_place(Activations *s, real *base, const Config *c, Size B) {
    int trains = s->keep == KEEP_ALL || s->keep == KEEP_INPUTS;
    Size d = c->n_embd, cache = B * positions(c) * d, used = 0;
    s->T = s->keep == KEEP_PAST ? 1 : positions(c);
    Size rows = B * s->T;
    Layer layer = {.h = NULL};
    carve(base, &used, ceil_div(sizeof *s, sizeof(real))); // the struct itself
    s->layer = (void *)carve(base, &used, (c->n_layer + 1) * (Size)(sizeof layer / sizeof(real)));
    for (Size l = 0; l <= c->n_layer; l++) {
        if (l == 0 || trains) layer.h = carve(base, &used, rows * d);
        if (l == 0 || (s->keep == KEEP_ALL && l < c->n_layer)) {
            layer.qkv = carve(base, &used, rows * 3 * d);
            layer.lse = carve(base, &used, rows * c->n_head);
            layer.att = carve(base, &used, rows * d);
            layer.a = carve(base, &used, rows * d);
            layer.u = carve(base, &used, rows * 4 * d);
        }
        if (s->keep == KEEP_PAST && l < c->n_layer) {
            layer.keys = carve(base, &used, cache);
            layer.values = carve(base, &used, cache);
        }
        if (base) s->layer[l] = layer;
    }
    s->n = carve(base, &used, rows * d);
    s->g = carve(base, &used, rows * 4 * d);
    s->inv = carve(base, &used, rows);
    s->logits = carve(base, &used, rows * c->n_vocab);
    s->nll = carve(base, &used, rows);
    s->features = carve(base, &used, B * d);
    s->classes = carve(base, &used, B * c->n_class);
    s->team.each = attention_scratch(positions(c), d / c->n_head);
    s->team.memory = carve(base, &used, s->team.threads * s->team.each);
    if (trains) {
        s->dh = carve(base, &used, rows * d);
        s->dn = carve(base, &used, rows * d);
        s->wide = carve(base, &used, rows * 4 * d);
        s->partial = carve(base, &used, rms_partials(rows) * d);
    }
    return used * sizeof(real);
}

Size activations_bytes(const Config *c, Size B, int keep) {
    Activations s = {.keep = keep, .team = {.threads = threads_get()}};
    return activations_place(&s, NULL, c, B);
}

Activations *activations_new(const Config *c, Size B, int keep) {
    if (keep == KEEP_PAST && !is_causal(c))
        return fail("only a model trained with L_AR can draw pictures, this one is BERT"), NULL;
    Activations *s = zalloc(activations_bytes(c, B, keep), 1);
    if (!s) return NULL;
    s->team.threads = threads_get();
    s->keep = keep;
    activations_place(s, (real *)(void *)s, c, B);
    return s;
}

static Attention attention_of(const Model *m, const Activations *s, Size B) {
    const Config *c = &m->config;
    return (Attention){B, positions(c), c->n_embd, c->n_head, is_causal(c), s->team};
}

/* A block, up to what backward needs of it: a = h + attn(rms(h)), u = rms(a) W_fc. */
static void block_inner(const Model *m, const Activations *s, Size l, Size B) {
    Size d = m->config.n_embd, rows = B * s->T;
    const Layer *y = &s->layer[l];
    Attention attention = attention_of(m, s, B);
    rms_forward(s->n, s->inv, y->h, weights(m, LN_1, l).data, rows, d);
    matmul(s->team, matrix(y->qkv, rows, 3 * d), matrix(s->n, rows, d), weights(m, C_ATTN, l), 0);
    if (s->keep == KEEP_PAST) attention_step(&attention, y->att, y->qkv, y->keys, y->values, s->t);
    else attention_forward(&attention, y->att, y->lse, y->qkv);
    memcpy(y->a, y->h, rows * d * sizeof *y->a);
    matmul(s->team, matrix(y->a, rows, d), matrix(y->att, rows, d), weights(m, ATTN_PROJ, l), 1);
    rms_forward(s->n, s->inv, y->a, weights(m, LN_2, l).data, rows, d);
    matmul(s->team, matrix(y->u, rows, 4 * d), matrix(s->n, rows, d), weights(m, C_FC, l), 0);
}

/* From h^l to h^(l+1) = a + gelu(u) W_proj. */
static void block_forward(const Model *m, const Activations *s, Size l, Size B) {
    Size d = m->config.n_embd, rows = B * s->T;
    const Layer *y = &s->layer[l];
    real *out = s->layer[l + 1].h;
    block_inner(m, s, l, B);
    gelu_forward(s->g, y->u, rows, 4 * d);
    memcpy(out, y->a, rows * d * sizeof *out);
    matmul(s->team, matrix(out, rows, d), matrix(s->g, rows, 4 * d), weights(m, MLP_PROJ, l), 1);
}

/* s->dh goes in as the gradient of the block's output and comes out as that of its input. For
   c = a w: da = dc w', dw += a' dc. Normalised inputs are computed again, which is cheaper than
   keeping them. */
static void block_backward(const Model *m, const Activations *s, Size l, Size B, real *grads) {
    Size d = m->config.n_embd, rows = B * positions(&m->config);
    const Layer *y = &s->layer[l];
    Attention attention = attention_of(m, s, B);
    const real *ln_1 = weights(m, LN_1, l).data, *ln_2 = weights(m, LN_2, l).data;
    Matrix dh = matrix(s->dh, rows, d), n = matrix(s->n, rows, d), dn = matrix(s->dn, rows, d);
    Matrix du = matrix(s->wide, rows, 4 * d), g = matrix(s->g, rows, 4 * d);
    Matrix dqkv = matrix(s->wide, rows, 3 * d), datt = matrix(s->wide + rows * 3 * d, rows, d);

    matmul(s->team, du, dh, transposed(weights(m, MLP_PROJ, l)), 0);
    gelu_backward(du.data, s->g, y->u, rows, 4 * d);
    matmul(s->team, tensor(m, grads, MLP_PROJ, l), transposed(g), dh, 1);
    rms_forward(s->n, s->inv, y->a, ln_2, rows, d);
    matmul(s->team, tensor(m, grads, C_FC, l), transposed(n), du, 1);
    matmul(s->team, dn, du, transposed(weights(m, C_FC, l)), 0);
    rms_backward(s->dh, tensor(m, grads, LN_2, l).data, s->partial, s->dn, y->a, ln_2, s->inv, rows,
                 d);

    matmul(s->team, datt, dh, transposed(weights(m, ATTN_PROJ, l)), 0);
    matmul(s->team, tensor(m, grads, ATTN_PROJ, l), transposed(matrix(y->att, rows, d)), dh, 1);
    attention_backward(&attention, dqkv.data, datt.data, y->qkv, y->att, y->lse);
    rms_forward(s->n, s->inv, y->h, ln_1, rows, d);
    matmul(s->team, tensor(m, grads, C_ATTN, l), transposed(n), dqkv, 1);
    matmul(s->team, dn, dqkv, transposed(weights(m, C_ATTN, l)), 0);
    rms_backward(s->dh, tensor(m, grads, LN_1, l).data, s->partial, s->dn, y->h, ln_1, s->inv, rows,
                 d);
}

/* h^0, of all positions or of the one that is sampled. */
static void model_embed(const Model *m, const Activations *s, const Batch *batch) {
    const Config *c = &m->config;
    embed_forward(s->layer[0].h, batch, weights(m, WTE, 0).data, weights(m, WPE, 0).data,
                  positions(c), c->n_embd, c->n_vocab, s->t, s->T);
}

const real *model_forward(const Model *m, Activations *s, const Batch *batch) {
    Size d = m->config.n_embd, L = m->config.n_layer;
    model_embed(m, s, batch);
    for (Size l = 0; l < L; l++) block_forward(m, s, l, batch->B);
    rms_forward(s->n, s->inv, s->layer[L].h, weights(m, LN_F, 0).data, batch->B * s->T, d);
    return s->n;
}

real *model_logits(const Model *m, Activations *s, Size B) {
    Size d = m->config.n_embd, rows = B * s->T;
    matmul(s->team, matrix(s->logits, rows, m->config.n_vocab), matrix(s->n, rows, d),
           transposed(weights(m, LM_HEAD, 0)), 0); // lm_head is stored (out, in)
    return s->logits;
}

/* From s->dn, the gradient of n^L, back to the embeddings. */
static void model_backward(const Model *m, Activations *s, const Batch *batch, real *grads) {
    const Config *c = &m->config;
    Size d = c->n_embd, L = c->n_layer, rows = batch->B * positions(c);
    memset(s->dh, 0, rows * d * sizeof *s->dh);
    rms_backward(s->dh, tensor(m, grads, LN_F, 0).data, s->partial, s->dn, s->layer[L].h,
                 weights(m, LN_F, 0).data, s->inv, rows, d);
    for (Size l = L - 1; l >= 0; l--) {
        if (s->keep == KEEP_INPUTS) block_inner(m, s, l, batch->B);
        block_backward(m, s, l, batch->B, grads);
    }
    embed_backward(tensor(m, grads, WTE, 0).data, tensor(m, grads, WPE, 0).data, s->dh, batch,
                   positions(c), d, c->n_vocab);
}

/* ==== 5 objectives ==============================================================================
   Section 2.1 of the paper: L_AR predicts each pixel from those before it, L_BERT the masked pixels
   from the others; section 2.3: L_CLF predicts the class from the mean of n^L over positions. All
   three are the same cross entropy on top of one forward pass, and their gradients meet in n^L. */

void bert_mask(uint8_t *mask, Size T, double probability, uint64_t seed, uint64_t index) {
    uint64_t stream = stream_of(FOR_MASK, index), counter = 0;
    int masked = 0;
    while (!masked)
        for (Size t = 0; t < T; t++) {
            mask[t] = random_uniform(seed, stream, counter++) < probability;
            masked |= mask[t];
        }
}

/* The sum over images of L_GEN, the mean nll of an image's positions (BERT: of its masked ones).
   With grads: writes s->dn, adds to lm_head's gradient, both `scale` times that sum's. */
static double generative_loss(const Model *m, Activations *s, const Batch *batch, double scale,
                              real *grads) {
    Size T = positions(&m->config), d = m->config.n_embd, K = m->config.n_vocab;
    Size rows = batch->B * T;
    double loss = 0;
    cross_entropy_forward(model_logits(m, s, batch->B), s->nll, batch->tokens, rows, K);
    for (Size r0 = 0; r0 < rows; r0 += T) { // an image
        double sum = 0, counted = 0;
        for (Size r = r0; r < r0 + T; r++)
            if (!batch->mask || batch->mask[r]) sum += s->nll[r], counted++;
        for (Size r = r0; r < r0 + T; r++)
            s->nll[r] = !batch->mask || batch->mask[r] ? (real)(scale / counted) : 0;
        loss += counted > 0 ? sum / counted : 0;
    }
    if (!grads) return loss;
    Matrix dlogits = matrix(s->logits, rows, K), n = matrix(s->n, rows, d);
    cross_entropy_backward(s->logits, batch->tokens, s->nll, rows, K);
    matmul(s->team, matrix(s->dn, rows, d), dlogits, weights(m, LM_HEAD, 0), 0);
    matmul(s->team, tensor(m, grads, LM_HEAD, 0), transposed(dlogits), n, 1);
    return loss;
}

/* Add scale times the features of B images to out, whose rows lie out_step apart: of n, their n^l
   (B, T, d), the mean over positions (d), or all positions side by side (T, d). */
static void pool_add(real *out, Size out_step, const real *n, Size B, Size T, Size d, int pool,
                     double scale) {
    Size step = pool == POOL_NONE ? d : 0;
    real factor = (real)(pool == POOL_NONE ? scale : scale / (double)T);
#pragma omp parallel for schedule(static)
    for (Size b = 0; b < B; b++)
        for (Size t = 0; t < T; t++) {
            const real *in = n + (b * T + t) * d;
            real *o = out + b * out_step + t * step;
            for (Size i = 0; i < d; i++) o[i] += factor * in[i];
        }
}

/* Class logits (B, C) = features (B, d) score', features = mean over positions of n^L. */
static void classify(const Model *m, Activations *s, Size B) {
    Size d = m->config.n_embd, C = m->config.n_class;
    memset(s->features, 0, B * d * sizeof *s->features);
    pool_add(s->features, d, s->n, B, positions(&m->config), d, POOL_MEAN, 1);
    matmul(s->team, matrix(s->classes, B, C), matrix(s->features, B, d),
           transposed(weights(m, SCORE, 0)), 0);
}

static Size largest_of(const real *x, Size n) { // the first of several
    Size largest = 0;
    for (Size k = 1; k < n; k++)
        if (x[k] > x[largest]) largest = k;
    return largest;
}

/* The cross entropy of B rows of class logits (B, C) is added to losses; the logits become `scale`
   times its gradient. A picture without a label weighs nothing. */
static void class_losses(real *logits, const uint16_t *labels, Size B, Size C, double scale,
                         Losses *losses) {
    for (Size b = 0; b < B; b++, logits += C) {
        real nll, factor = (real)scale;
        if (labels[b] == NO_LABEL) {
            memset(logits, 0, C * sizeof *logits);
            continue;
        }
        losses->correct += largest_of(logits, C) == labels[b];
        cross_entropy_forward(logits, &nll, &labels[b], 1, C);
        cross_entropy_backward(logits, &labels[b], &factor, 1, C);
        losses->clf += (double)nll;
    }
}

/* L_CLF. With grads: adds to s->dn and to score's gradient. */
static void classifier_loss(const Model *m, Activations *s, const Batch *batch, double scale,
                            real *grads, Losses *losses) {
    Size T = positions(&m->config), d = m->config.n_embd, C = m->config.n_class, B = batch->B;
    classify(m, s, B);
    class_losses(s->classes, batch->labels, B, C, scale, losses);
    if (!grads) return;
    Matrix dlogits = matrix(s->classes, B, C), features = matrix(s->features, B, d);
    matmul(s->team, tensor(m, grads, SCORE, 0), transposed(dlogits), features, 1);
    matmul(s->team, features, dlogits, weights(m, SCORE, 0), 0); // now their gradient
#pragma omp parallel for schedule(static)
    for (Size r = 0; r < B * T; r++)
        for (Size i = 0; i < d; i++) s->dn[r * d + i] += s->features[r / T * d + i] / (real)T;
}

Losses objective(const Model *m, Activations *s, const Batch *batch, double gen_weight,
                 double clf_weight, real *grads) {
    Losses losses = {0, 0, 0};
    Size n = batch->B * positions(&m->config) * m->config.n_embd;
    model_forward(m, s, batch);
    if (grads && gen_weight == 0) memset(s->dn, 0, n * sizeof *s->dn);
    if (gen_weight != 0) losses.gen = generative_loss(m, s, batch, gen_weight, grads);
    if (clf_weight != 0) classifier_loss(m, s, batch, clf_weight, grads, &losses);
    if (grads) model_backward(m, s, batch, grads);
    return losses;
}

/* Adam with the paper's settings (section 3.4). The work is reading and writing memory, so one pass
   does everything, down to clearing the gradient. */
void adam_step(const Adam *adam, Size step, double lr) {
    // Fixed, so that vector and remainder loops split alike for all threads.
    enum { BLOCK = BLOCK_OF(4096, 3) };
    const real beta1 = (real)0.9, beta2 = (real)0.95, eps = (real)1e-8;
    const real rate = (real)(lr / (1 - pow(0.9, (double)step)));
    const real unbias = (real)(1 / sqrt(1 - pow(0.95, (double)step)));
    real *params = adam->params, *grads = adam->grads;
    real *first = adam->first, *second = adam->second;
#pragma omp parallel for schedule(static)
    for (Size from = 0; from < adam->n; from += BLOCK) {
        Size end = min(adam->n, from + BLOCK);
#pragma omp simd
        for (Size i = from; i < end; i++) {
            real g = grads[i];
            first[i] = beta1 * first[i] + (1 - beta1) * g;
            second[i] = beta2 * second[i] + (1 - beta2) * g * g;
            params[i] -= rate * first[i] / ((real)sqrt((double)second[i]) * unbias + eps);
            grads[i] = 0;
        }
    }
}

double learning_rate(Size step, Size steps, Size warmup, double peak) {
    if (step < warmup) return peak * (double)(step + 1) / (double)warmup;
    double done = (double)(step - warmup) / (double)(steps > warmup ? steps - warmup : 1);
    return peak * 0.5 * (1 + cos(3.14159265358979323846 * done));
}

/* ==== 6 palette =================================================================================
   Pictures become sequences of colour numbers (paper, section 3.2: a 9-bit palette by k-means cuts
   the sequence to a third of what separate channels would take). The one idea: an image set has far
   fewer colours than pixels, so k-means runs over distinct colours, weighted by their counts. Sums
   of bytes are whole numbers, exact in 64 bits, so threads may add them in any order. */

/* A list of n colours is a matrix (3, n), all red, then all green, then all blue, so that vectors
   take many at once. Here, between colour i of c and another: */
static inline real squared_distance(Matrix c, Size i, const real *colour) {
    real r = colour[0] - c.data[i], g = colour[1] - c.data[c.cols + i];
    real b = colour[2] - c.data[2 * c.cols + i];
    return r * r + g * g + b * b;
}

/* The centre nearest to a colour; the first of several. */
static Size nearest(Matrix centres, const real *colour) {
    enum { CHUNK = BLOCK_OF(128, 3) };
    real most = -INFINITY, closeness[CHUNK]; // minus the squared distance
    Size index = 0;
    for (Size k0 = 0; k0 < centres.cols; k0 += CHUNK) {
        Size n = min(CHUNK, centres.cols - k0);
        for (Size k = 0; k < n; k++) closeness[k] = -squared_distance(centres, k0 + k, colour);
        real here = row_max(closeness, n);
        if (here <= most) continue;
        most = here;
        for (index = k0; closeness[index - k0] != here;) index++;
    }
    return index;
}

/* The distinct colours of many pixels. */
typedef struct {
    Matrix colours;  // (3, n) in byte units; behind them in the same memory:
    uint32_t *count; // (n) pixels of each
    real *distance;  // (n) squared, to the nearest centre while these are being chosen
    uint16_t *owner; // (n) the nearest centre
} Histogram;

enum { ALL_COLOURS = 1 << 24 }; // of three bytes

static int histogram_make(Histogram *h, const uint8_t *rgb, Size pixels) {
    uint32_t *table = zalloc(ALL_COLOURS, sizeof *table);
    Size n = 0, k = 0;
    if (!table) return -1;
    for (Size i = 0; i < pixels; i++, rgb += 3) n += !table[rgb[0] << 16 | rgb[1] << 8 | rgb[2]]++;
    real *memory = zalloc(n * 6, sizeof *memory); // no count or owner is larger than a real
    if (memory)
        *h = (Histogram){matrix(memory, 3, n), (void *)(memory + 3 * n), memory + 4 * n,
                         (void *)(memory + 5 * n)};
    for (Size i = 0; i < ALL_COLOURS && memory; i++) {
        if (!table[i]) continue;
        for (int j = 0; j < 3; j++) memory[j * n + k] = (real)(i >> (16 - 8 * j) & 255);
        h->count[k++] = table[i];
    }
    free(table);
    return memory ? 0 : -1;
}

static void colour_of(real colour[3], Matrix colours, Size i) {
    for (int j = 0; j < 3; j++) colour[j] = *element(colours, j, i);
}

/* Greedy k-means++ (Arthur and Vassilvitskii 2007): each next centre is the best of a few
   colours drawn with probability count * squared distance, which is called their mass here. Colours
   that are centres have mass 0 and are not drawn again. All of this is whole numbers, whose sums
   are exact in doubles and so the same in any order. */

/* What the mass of all colours would be with one more centre. */
static double mass_with(const Histogram *h, const real *centre) {
    enum { BLOCK = BLOCK_OF(1024, 3) };
    double sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum)
    for (Size from = 0; from < h->colours.cols; from += BLOCK) {
        double mass = 0;
#pragma omp simd reduction(+ : mass)
        for (Size i = from; i < min(h->colours.cols, from + BLOCK); i++) {
            real square = squared_distance(h->colours, i, centre);
            mass += h->count[i] * (double)(square < h->distance[i] ? square : h->distance[i]);
        }
        sum += mass;
    }
    return sum;
}

static Size draw_by_mass(const Histogram *h, double goal) {
    Size chosen = 0;
    for (Size i = 0; i < h->colours.cols && goal >= 0; i++) {
        if (h->distance[i] > 0) chosen = i;
        goal -= h->count[i] * (double)h->distance[i];
    }
    return chosen;
}

static void choose_centres(Matrix centres, const Histogram *h, uint64_t seed, Watch watch) {
    Size K = centres.cols, n = h->colours.cols;
    real colour[3], centre[3] = {1e4, 1e4, 1e4};       // so far away that it takes none
    for (Size i = 0; i < n; i++) h->distance[i] = 1e6; // beyond all others: the first takes all
    for (Size k = 0; k < K; k++) {
        if (watch) watch("palette, first colours", k, K);
        int trials = k ? 2 + (int)log((double)K) : 1;
        double mass = mass_with(h, centre), least = INFINITY; // as it is: centre is the last one
        for (int trial = 0; trial < trials; trial++) {
            uint64_t stream = stream_of(FOR_PALETTE, trial);
            double uniform = random_uniform(seed, stream, k), left;
            colour_of(colour, h->colours, draw_by_mass(h, mass * uniform));
            if ((left = mass_with(h, colour)) >= least) continue;
            least = left;
            memcpy(centre, colour, sizeof centre);
        }
        for (int j = 0; j < 3; j++) *element(centres, j, k) = centre[j];
#pragma omp parallel for schedule(static)
        for (Size i = 0; i < n; i++) {
            real square = squared_distance(h->colours, i, centre);
            h->owner[i] = square < h->distance[i] ? (uint16_t)k : h->owner[i];
            h->distance[i] = square < h->distance[i] ? square : h->distance[i];
        }
    }
}

/* Lloyd's two steps. First, move each centre to the mean of its pixels; one without any stays. */
static void move_centres(Matrix centres, const Histogram *h, uint64_t *sums) {
    Size K = centres.cols;
    memset(sums, 0, 4 * K * sizeof *sums); // (K, 4): red, green, blue, pixels
    for (Size i = 0; i < h->colours.cols; i++) {
        uint64_t *sum = sums + 4 * h->owner[i];
        for (int j = 0; j < 3; j++) sum[j] += (uint64_t)*element(h->colours, j, i) * h->count[i];
        sum[3] += h->count[i];
    }
    for (Size k = 0; k < K; k++)
        for (int j = 0; j < 3 && sums[4 * k + 3]; j++)
            *element(centres, j, k) = (real)((double)sums[4 * k + j] / (double)sums[4 * k + 3]);
}

/* Second, give each colour to its nearest centre; returns how many changed hands. */
static Size assign(Matrix centres, const Histogram *h) {
    Size changed = 0;
#pragma omp parallel for schedule(static) reduction(+ : changed)
    for (Size i = 0; i < h->colours.cols; i++) {
        real colour[3];
        colour_of(colour, h->colours, i);
        Size owner = nearest(centres, colour);
        changed += owner != h->owner[i];
        h->owner[i] = owner;
    }
    return changed;
}

Size palette_build(real *palette, Size K, const uint8_t *rgb, Size n, uint64_t seed,
                   Size iterations, Watch watch) {
    Histogram h;
    if (n < 1 || n > UINT32_MAX) return fail("a palette takes 1 to 2^32 - 1 pixels, not %lld", n);
    if (histogram_make(&h, rgb, n)) return -1;
    Size changed = 1, count = min(K, h.colours.cols);
    Matrix centres = matrix(zalloc(3 * count, sizeof(real)), 3, count);
    uint64_t *sums = zalloc(4 * count, sizeof *sums);
    int ready = centres.data && sums;
    if (ready) choose_centres(centres, &h, seed, watch);
    for (Size i = 0; i < iterations && changed && ready; i++) {
        if (watch) watch("palette, k-means at the longest", i, iterations);
        move_centres(centres, &h, sums);
        changed = assign(centres, &h);
    }
    for (Size i = 0; i < 3 * count && ready; i++)
        palette[i] = *element(centres, i % 3, i / 3) / (real)127.5 - 1;
    free(sums);
    free(centres.data);
    free(h.colours.data);
    return ready ? count : -1;
}

int palette_index(uint16_t *tokens, const uint8_t *rgb, Size n, const real *palette, Size K) {
    Matrix centres = matrix(zalloc(3 * K, sizeof(real)), 3, K);
    if (!centres.data) return -1;
    for (Size i = 0; i < 3 * K; i++) *element(centres, i % 3, i / 3) = palette[i];
#pragma omp parallel for schedule(static)
    for (Size i = 0; i < n; i++) {
        real colour[3];
        for (Size j = 0; j < 3; j++) colour[j] = rgb[3 * i + j] / (real)127.5 - 1;
        tokens[i] = nearest(centres, colour);
    }
    free(centres.data);
    return 0;
}

void palette_colours(uint8_t *rgb, const uint16_t *tokens, Size n, const real *palette) {
    for (Size i = 0; i < 3 * n; i++) {
        real v = (palette[3 * tokens[i / 3] + i % 3] + 1) * (real)127.5 + (real)0.5;
        rgb[i] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
    }
}

/* ==== 7 sampling ================================================================================
   Pictures are drawn one position after another, as L_AR has learnt them. The idea to take away:
   each position's keys and values never change once computed, so they are kept: a step costs one
   row of every matrix product, and reads every weight once for all B images. */

real *sampler_step(const Model *m, Activations *s, Size t, const uint16_t *tokens, Size B) {
    s->t = t;
    model_forward(m, s, &(Batch){B, tokens, NULL, NULL});
    return model_logits(m, s, B);
}

double sample_uniform(uint64_t seed, Size image, Size t) {
    return random_uniform(seed, stream_of(FOR_SAMPLE, image), t);
}

/* probs (K) holds logits and becomes probabilities, not yet divided by their sum. Returns the first
   colour whose cumulative probability exceeds `uniform`; -1: logits are not finite. */
static int draw_token(real *probs, Size K, double uniform, const Drawing *drawing) {
    real max = row_max(probs, K), least = drawing->top_k > 0 ? max : -INFINITY; // drawn
    double sum = 0, passed = 0;
    Size last = 0;
    for (Size k = 0; k < K && drawing->top_k > 0; k++) {
        Size above = 0; // colours that are more probable
        for (Size i = 0; i < K; i++) above += probs[i] > probs[k];
        if (above < drawing->top_k && probs[k] < least) least = probs[k];
    }
    for (Size k = 0; k < K; k++) {
        real p = real_exp((real)((probs[k] - max) / drawing->temperature));
        probs[k] = probs[k] < least ? 0 : p;
        sum += probs[k];
    }
    for (Size k = 0; k < K && passed <= uniform * sum; k++) {
        if (probs[k] > 0) last = k;
        passed += probs[k];
    }
    return isfinite(sum) ? (int)last : -1;
}

int sample_positions(const Model *m, Activations *s, uint16_t *tokens, Size B, Size t, Size end,
                     Size given, const Drawing *drawing) {
    Size T = positions(&m->config), K = m->config.n_vocab;
    for (; t < end; t++) {
        real *logits = sampler_step(m, s, t, tokens, B);
        for (Size b = 0; b < B && t >= given; b++) {
            double uniform = sample_uniform(drawing->seed, drawing->first + b, t);
            int token = draw_token(logits + b * K, K, uniform, drawing);
            if (token < 0)
                return fail("position %lld: the logits are not finite: weights are too large", t);
            tokens[b * T + t] = (uint16_t)token;
        }
    }
    return 0;
}

/* ==== 8 probe ===================================================================================
   How good are the features that pre-training left (paper, section 2.4)? The network is frozen; a
   logistic regression on the features of one layer shows how much of the classes a plane can read
   off them. The idea to take away: one pass over the data collects all layers, side by side in a
   picture's row, so that a layer, or several neighbours joined, is a range of columns. */

Size feature_width(const Config *c, int pool) {
    return c->n_embd * (pool == POOL_NONE ? positions(c) : 1);
}

void model_features(const Model *m, Activations *s, const Batch *batch, int pool, double scale,
                    real *out) {
    const Config *c = &m->config;
    Size T = positions(c), d = c->n_embd, width = feature_width(c, pool);
    model_embed(m, s, batch);
    for (Size l = 0; l <= c->n_layer; l++) {
        if (l > 0) block_forward(m, s, l - 1, batch->B);
        const real *gain = weights(m, l < c->n_layer ? LN_1 : LN_F, l).data;
        rms_forward(s->n, s->inv, s->layer[l].h, gain, batch->B * T, d);
        pool_add(out + l * width, (c->n_layer + 1) * width, s->n, batch->B, T, d, pool, scale);
    }
}

/* Like dot, summed in double: a search along a line lives on small differences. */
static double wide_dot(const real *a, const real *b, Size n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Size i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

static void add_scaled(real *out, double scale, const real *x, Size n) {
#pragma omp simd
    for (Size i = 0; i < n; i++) out[i] += (real)scale * x[i];
}

/* L-BFGS. Newton's step -H^-1 g without a matrix: what the last few steps did to the gradient says
   enough of the curvature H to correct the gradient's direction. */
enum { HISTORY = 10 };

typedef struct {
    real *s, *y;      // a step (n), and the change of the gradient along it (n)
    double curvature; // s y
} Step;

/* d = H^-1 d, from the last `count` steps, the newest first: the part of d that the newest one
   explains is taken out, the older ones do the rest, and it is put in again as that step would have
   it. Where there are no more, H^-1 is `scale`. */
static void inverse_curvature(real *d, Size n, const Step *steps, Size count, double scale) {
    if (count == 0) {
        for (Size i = 0; i < n; i++) d[i] *= (real)scale;
        return;
    }
    double alpha = wide_dot(steps->s, d, n) / steps->curvature;
    add_scaled(d, -alpha, steps->y, n);
    inverse_curvature(d, n, steps + 1, count - 1, scale);
    double beta = wide_dot(steps->y, d, n) / steps->curvature;
    add_scaled(d, alpha - beta, steps->s, n);
}

Size lbfgs(Smooth *f, void *context, real *x, Size n, Size most, double tolerance) {
    enum { TRIALS = 30 };
    real *memory = zalloc((4 + 2 * HISTORY) * n, sizeof *memory);
    if (!memory) return -1;
    real *g = memory, *d = g + n, *next_x = d + n, *next_g = next_x + n, *history = next_g + n;
    Step steps[HISTORY];
    for (Size k = 0; k < HISTORY; k++)
        steps[k] = (Step){history + 2 * k * n, history + (2 * k + 1) * n, 0};
    double value = f(context, x, g), scale = 1;
    Size step = 0;
    for (; step < most; step++) {
        double largest = 0, low = 0, high = INFINITY, next = value;
        for (Size i = 0; i < n; i++)
            if (fabs((double)g[i]) > largest) largest = fabs((double)g[i]);
        if (largest <= tolerance) break;
        for (Size i = 0; i < n; i++) d[i] = -g[i];
        inverse_curvature(d, n, steps, min(step, HISTORY), scale);
        double slope = wide_dot(d, g, n), length = step ? 1 : fmin(1, 1 / sqrt(-slope));
        int trial = 0;
        for (; trial < TRIALS && slope < 0; trial++) { // weak Wolfe conditions, by bisection
            memcpy(next_x, x, n * sizeof *x);
            add_scaled(next_x, length, d, n);
            next = f(context, next_x, next_g);
            if (!(next <= value + 1e-4 * length * slope)) high = length; // falls too little
            else if (wide_dot(d, next_g, n) < 0.9 * slope) low = length; // still steep
            else break;
            length = isinf(high) ? 2 * low : (low + high) / 2;
        }
        if (trial == TRIALS || !(slope < 0)) break; // rounding hides what there is left to gain
        Step newest = steps[HISTORY - 1];           // in the memory of the oldest
        memmove(steps + 1, steps, (HISTORY - 1) * sizeof *steps);
        for (Size i = 0; i < n; i++) {
            newest.s[i] = next_x[i] - x[i];
            newest.y[i] = next_g[i] - g[i];
            x[i] = next_x[i];
            g[i] = next_g[i];
        }
        newest.curvature = wide_dot(newest.s, newest.y, n);
        scale = newest.curvature / wide_dot(newest.y, newest.y, n);
        steps[0] = newest;
        value = next;
    }
    free(memory);
    return step;
}

/* Multinomial logistic regression: the class head's cross entropy once more, here of all pictures
   at once, with a bias and an L2 penalty. */
typedef struct {
    Matrix x; // (n, width)
    const uint16_t *labels;
    Size C;
    double l2;
    real *logits; // (n, C), then their gradient
    real *nll;    // (n), then each picture's weight, 1 / n
    Team team;
} Logistic;

/* The mean nll + l2 / 2 |W|^2, logits = x W' + b; w holds W (C, width), then b (C). With P (n, C)
   the logits' gradient: dW = P' x + l2 W, db = P' 1. */
static double logistic_loss(void *context, const real *w, real *gradient) {
    const Logistic *p = context;
    Size n = p->x.rows, C = p->C, size = C * p->x.cols;
    Matrix logits = matrix(p->logits, n, C);
    double loss = 0;
    for (Size i = 0; i < n; i++) memcpy(p->logits + i * C, w + size, C * sizeof *w);
    matmul(p->team, logits, p->x, transposed(matrix(w, C, p->x.cols)), 1);
    cross_entropy_forward(p->logits, p->nll, p->labels, n, C);
    for (Size i = 0; i < n; i++) {
        loss += (double)p->nll[i] / (double)n;
        p->nll[i] = 1 / (real)n;
    }
    cross_entropy_backward(p->logits, p->labels, p->nll, n, C);
    matmul(p->team, matrix(gradient, C, p->x.cols), transposed(logits), p->x, 0);
    add_scaled(gradient, p->l2, w, size);
    for (Size k = 0; k < C; k++) { // in double: rounding here would end the search early
        double sum = 0;
        for (Size i = 0; i < n; i++) sum += (double)p->logits[i * C + k];
        gradient[size + k] = (real)sum;
    }
    return loss + p->l2 / 2 * wide_dot(w, w, size);
}

Size logistic_fit(real *w, Matrix x, const uint16_t *labels, Size C, double l2, double tolerance) {
    enum { MOST_STEPS = 1000 };
    real *memory = zalloc(x.rows * (C + 1), sizeof *memory);
    Team team = team_new();
    Size steps = -1;
    if (memory && team.memory) {
        Logistic p = {x, labels, C, l2, memory, memory + x.rows * C, team};
        steps = lbfgs(logistic_loss, &p, w, (x.cols + 1) * C, MOST_STEPS, tolerance);
    }
    free(team.memory);
    free(memory);
    return steps;
}

double logistic_accuracy(const real *w, Matrix x, const uint16_t *labels, Size C, uint8_t *right) {
    Size correct = 0;
#pragma omp parallel for schedule(static) reduction(+ : correct)
    for (Size i = 0; i < x.rows; i++) {
        Size largest = 0;
        real most = -INFINITY;
        for (Size k = 0; k < C; k++) {
            real logit = dot(w + k * x.cols, element(x, i, 0), x.cols) + w[C * x.cols + k];
            if (logit > most) most = logit, largest = k;
        }
        correct += largest == labels[i];
        if (right) right[i] = largest == labels[i];
    }
    return (double)correct / (double)x.rows;
}

/* Give each column of x mean 0 and standard deviation 1 in its first n rows, which train; a column
   that is constant there says nothing and becomes 0. */
static void standardise(Matrix x, Size n) {
#pragma omp parallel for schedule(static, 16)
    for (Size j = 0; j < x.cols; j++) {
        double mean = 0, variance = 0;
        for (Size i = 0; i < n; i++) mean += (double)*element(x, i, j) / (double)n;
        for (Size i = 0; i < n; i++) {
            double off = (double)*element(x, i, j) - mean;
            variance += off * off / (double)n;
        }
        double deviation = sqrt(variance); // below 1e-6 of the mean it is rounding
        double scale = deviation > 1e-6 * fabs(mean) ? 1 / deviation : 0;
        for (Size i = 0; i < x.rows; i++)
            *element(x, i, j) = (real)(((double)*element(x, i, j) - mean) * scale);
    }
}

static const char *const part_names[N_PARTS] = {"train", "validation", "test"};

/* The parts' rows are brought together, one part behind the other. The fits go from the strongest
   penalty on, each from the last one's weights. */
int probe_fit(Probe *probe, Matrix x, const uint16_t *labels, const Subset parts[N_PARTS], Size C,
              uint8_t *right) {
    static const double grid[] = {10, 1, 0.1, 0.01, 1e-3, 1e-4, 1e-5};
    Size n = 0, width = x.cols, row = 0;
    for (int i = 0; i < N_PARTS; i++) {
        if (!parts[i].n) return fail("no labelled pictures for the part %s", part_names[i]);
        n += parts[i].n;
    }
    real *all = zalloc(n * width, sizeof *all), *w = zalloc(C * (width + 1), sizeof *w);
    uint16_t *all_labels = zalloc(n, sizeof *all_labels), *part_labels[N_PARTS];
    Matrix part_rows[N_PARTS];
    int bad = !all || !w || !all_labels;
    for (int i = 0; i < N_PARTS && !bad; i++) {
        part_rows[i] = matrix(all + row * width, parts[i].n, width);
        part_labels[i] = all_labels + row;
        for (Size k = 0; k < parts[i].n; k++, row++) {
            Size picture = parts[i].index[k];
            memcpy(all + row * width, element(x, picture, 0), width * sizeof *all);
            all_labels[row] = labels[picture];
        }
    }
    if (!bad) standardise(matrix(all, n, width), parts[TRAIN_PART].n);
    for (size_t k = 0; k < sizeof grid / sizeof *grid && !bad; k++) {
        Probe now = {.l2 = grid[k]};
        bad = logistic_fit(w, part_rows[TRAIN_PART], part_labels[TRAIN_PART], C, grid[k], 1e-4) < 0;
        for (int i = 0; i < N_PARTS; i++)
            now.accuracy[i] = logistic_accuracy(w, part_rows[i], part_labels[i], C, NULL);
        if (k && now.accuracy[VALIDATION_PART] <= probe->accuracy[VALIDATION_PART]) continue;
        *probe = now;
        if (right) logistic_accuracy(w, part_rows[TEST_PART], part_labels[TEST_PART], C, right);
    }
    free(all);
    free(w);
    free(all_labels);
    return bad ? -1 : 0;
}

/* ==== 9 platform ================================================================================
   Here begins the second part, the files. First comes all that differs from one system to the next:
   files, folders and their names in UTF-8; for the program clock, memory, terminal and Ctrl-C, too.
   A port to another system changes nothing else. Then whole files. The idea to take away: a file is
   written under a hidden name beside its own, flushed to disk, and only then renamed. Whatever
   happens on the way, its name holds the last whole version. */

#define STOPPING "\nstopping after this step; press again to end now\n"

enum { PATH_SIZE = 4096 };
enum { NOTHING, REGULAR, FOLDER, DEVICE }; // what lies at a path; DEVICE: or a pipe, ...

#ifdef _WIN32 // MinGW-w64
#    define WIN32_LEAN_AND_MEAN
#    define NOMINMAX
#    include <windows.h>
#    include <dirent.h>
#    include <direct.h>
#    include <io.h>
#    include <psapi.h>
#    include <shellapi.h>
#    include <signal.h>
#    define getc_unlocked getc
#    define putc_unlocked putc

typedef struct {
    wchar_t text[PATH_SIZE / 4];
} Wide;

/* A path as Windows has it; one that is no UTF-8, or too long, becomes "", which nothing has. */
static Wide wide(const char *path) {
    Wide w;
    if (!MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, w.text, PATH_SIZE / 4))
        w.text[0] = 0;
    return w;
}

/* malloc() here gives a 16-byte boundary, and free() takes nothing else back: only time is lost. */
static void *aligned_memory(size_t bytes) { return malloc(bytes); }
static FILE *file_stream(const char *path, const char *mode) {
    return _wfopen(wide(path).text, wide(mode).text);
}
static Size file_size(FILE *f) { return _filelengthi64(_fileno(f)); }
static int file_to_disk(FILE *f) { return _commit(_fileno(f)); }
static int file_replace(const char *from, const char *to) {
    DWORD flags = MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH;
    return MoveFileExW(wide(from).text, wide(to).text, flags) ? 0 : (errno = EACCES, -1);
}
static void file_remove(const char *path) { _wremove(wide(path).text); }
static int process_number(void) { return (int)GetCurrentProcessId(); }
static int folder_create(const char *path) { return _wmkdir(wide(path).text); }
static int path_kind(const char *path) { // of NOTHING errno says why, else it is 0
    errno = 0;
    DWORD is = GetFileAttributesW(wide(path).text);
    if (is == INVALID_FILE_ATTRIBUTES) return NOTHING;
    return is & FILE_ATTRIBUTE_DIRECTORY ? FOLDER : is & FILE_ATTRIBUTE_DEVICE ? DEVICE : REGULAR;
}

typedef _WDIR Folder;
static Folder *folder_open(const char *path) { return _wopendir(wide(path).text); }
static const char *folder_next(Folder *folder) { // NULL: errno says why, or 0 at its end
    static _Thread_local char name[PATH_SIZE];
    errno = 0;
    struct _wdirent *entry = _wreaddir(folder);
    if (!entry) return NULL;
    WideCharToMultiByte(CP_UTF8, 0, entry->d_name, -1, name, PATH_SIZE, NULL, NULL);
    return name;
}
static void folder_close(Folder *folder) { _wclosedir(folder); }

#    ifndef IGPT_NO_MAIN
static int folder_lock(const char *path) { // for good; 1: another has it; -1: see errno
    char name[PATH_SIZE + 8];
    snprintf(name, sizeof name, "%s/.lock", path);
    HANDLE f = CreateFileW(wide(name).text, GENERIC_WRITE, 0, NULL, CREATE_ALWAYS,
                           FILE_FLAG_DELETE_ON_CLOSE, NULL);
    if (f != INVALID_HANDLE_VALUE) return 0;
    return GetLastError() == ERROR_SHARING_VIOLATION ? 1 : (errno = EACCES, -1);
}
static const char *folder_enter(const char *path) { return path; } // an open file keeps it there
static double seconds_now(void) { return 1e-3 * (double)GetTickCount64(); }
static double memory_limit(void) {
    MEMORYSTATUSEX memory = {.dwLength = sizeof memory};
    return GlobalMemoryStatusEx(&memory) ? (double)memory.ullTotalPhys : INFINITY;
}
static double peak_memory(void) {
    PROCESS_MEMORY_COUNTERS memory = {.cb = sizeof memory};
    GetProcessMemoryInfo(GetCurrentProcess(), &memory, sizeof memory);
    return (double)memory.PeakWorkingSetSize;
}
static int is_terminal(void) { // it must also be told to understand escapes
    HANDLE console = GetStdHandle(STD_ERROR_HANDLE);
    DWORD mode;
    SetConsoleOutputCP(CP_UTF8);
    return GetConsoleMode(console, &mode) &&
           SetConsoleMode(console, mode | ENABLE_VIRTUAL_TERMINAL_PROCESSING);
}
static int terminal_columns(void) {
    CONSOLE_SCREEN_BUFFER_INFO info;
    return GetConsoleScreenBufferInfo(GetStdHandle(STD_ERROR_HANDLE), &info) ? info.dwSize.X : 80;
}
static volatile sig_atomic_t interrupted; // the signal that came
static void on_interrupt(int number) {    // the second Ctrl-C ends at once
    interrupted = number;
    _write(2, STOPPING, sizeof STOPPING - 1);
}
static void catch_interrupt(void) { signal(SIGINT, on_interrupt); }
static char **process_start(int *argc, char **argv) { // arguments in UTF-8, and not expanded
    wchar_t **words = CommandLineToArgvW(GetCommandLineW(), argc);
    char **list = malloc(*argc * sizeof *list);
    for (int i = 0; words && list && i < *argc; i++) {
        int bytes = WideCharToMultiByte(CP_UTF8, 0, words[i], -1, NULL, 0, NULL, NULL);
        if (!(list[i] = malloc(bytes))) return argv;
        WideCharToMultiByte(CP_UTF8, 0, words[i], -1, list[i], bytes, NULL, NULL);
        for (char *c = list[i]; *c; c++)
            if (*c == '\\') *c = '/'; // which Windows takes as well, and igpt knows
    }
    return words && list ? list : argv;
}
#    endif

#else // POSIX; of WASI what it has
#    include <dirent.h>
#    include <fcntl.h>
#    include <sys/stat.h>
#    include <unistd.h>
#    ifndef __wasi__
#        include <signal.h>
#        include <sys/file.h>
#        include <sys/ioctl.h>
#        include <sys/resource.h>
#    endif

static void *aligned_memory(size_t bytes) {
    void *p = NULL;
    return posix_memalign(&p, 64, bytes) ? NULL : p;
}
static FILE *file_stream(const char *path, const char *mode) {
    // What a kill has left goes; a command that still writes to it keeps its file, without a name.
    if (*mode == 'w') unlink(path);
    return fopen(path, *mode == 'w' ? "wbx" : mode); // x: a new file, not by a link
}
static Size file_size(FILE *f) {
    struct stat s;
    return fstat(fileno(f), &s) == 0 ? s.st_size : -1;
}
static int file_to_disk(FILE *f) { return fsync(fileno(f)); }
static int file_replace(const char *from, const char *to) {
    char folder[PATH_SIZE];
    const char *slash = strrchr(to, '/');
    if (rename(from, to)) return -1;
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - to) : 1, slash ? to : ".");
    int f = open(*folder ? folder : "/", O_RDONLY);  // the name must reach the disk, too
    int bad = f >= 0 && fsync(f) && errno != EINVAL; // EINVAL: such a folder cannot be flushed
    if (f >= 0) close(f);
    return bad ? -1 : 0;
}
static void file_remove(const char *path) { remove(path); }
#    ifdef __wasi__
static int process_number(void) { return 0; } // there are no others
#    else
static int process_number(void) { return (int)getpid(); }
#    endif
static int folder_create(const char *path) { return mkdir(path, 0777); }
static int path_kind(const char *path) { // of NOTHING errno says why, else it is 0
    struct stat s;
    errno = 0;
    if (stat(path, &s)) return NOTHING;
    return S_ISDIR(s.st_mode) ? FOLDER : S_ISREG(s.st_mode) ? REGULAR : DEVICE;
}

typedef DIR Folder;
static Folder *folder_open(const char *path) { return opendir(path); }
static const char *folder_next(Folder *folder) { // NULL: errno says why, or 0 at its end
    errno = 0;
    struct dirent *entry = readdir(folder);
    return entry ? entry->d_name : NULL;
}
static void folder_close(Folder *folder) { closedir(folder); }

#    ifndef IGPT_NO_MAIN
static int is_terminal(void) { return isatty(2); }
static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
#        ifdef __wasi__
static double peak_memory(void) { return 65536.0 * (double)__builtin_wasm_memory_size(0); }
static int terminal_columns(void) { return 80; }
static double memory_limit(void) { return 4294967296.0; }
static const int interrupted = 0; // there are neither signals nor other processes
static void catch_interrupt(void) {}
static int folder_lock(const char *path) { return (void)path, 0; }
static const char *folder_enter(const char *path) { return path; }
static char **process_start(int *argc, char **argv) { return (void)argc, argv; }
#        else
static double peak_memory(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
#            ifdef __APPLE__
    return (double)usage.ru_maxrss;
#            else
    return 1024.0 * (double)usage.ru_maxrss; // Linux and the BSDs count KiB
#            endif
}
static int terminal_columns(void) {
    struct winsize size;
    return ioctl(2, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
}
static volatile sig_atomic_t interrupted; // the signal that came
static void on_interrupt(int number) {
    int error = errno; // what it has interrupted may be about to look at it
    ssize_t written = interrupted ? 0 : write(2, STOPPING, sizeof STOPPING - 1);
    interrupted = number;
    (void)written; // whoever should read it may be gone
    errno = error;
}
/* The second Ctrl-C ends at once; shells and timeout send the other signals twice. What whoever
   started igpt has it ignore (nohup) stays so. */
static void catch_interrupt(void) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    for (int i = 0; i < 3; i++) {
        struct sigaction action = {.sa_handler = on_interrupt}, old;
        if (numbers[i] == SIGINT) action.sa_flags = (int)SA_RESETHAND;
        if (!sigaction(numbers[i], NULL, &old) && old.sa_handler != SIG_IGN)
            sigaction(numbers[i], &action, NULL);
    }
}
static char **process_start(int *argc, char **argv) {
    int f = 0;
    signal(SIGXFSZ, SIG_IGN); // a file that must not grow further fails like a full disk
    signal(SIGPIPE, SIG_IGN); // whoever reads progress may go, and a run goes on
    while (f >= 0 && f <= 2) f = open("/dev/null", O_RDWR); // or files get their numbers
    if (f > 2) close(f);
    return (void)argc, argv;
}
static double memory_limit(void) { // physical memory, or less by ulimit -v
    struct rlimit limit;
    double most = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if (getrlimit(RLIMIT_AS, &limit) || limit.rlim_cur == RLIM_INFINITY) return most;
    return (double)limit.rlim_cur < most ? (double)limit.rlim_cur : most;
}
static int locked_folder;
static int folder_lock(const char *path) { // as on Windows; 2: this file system has no locks
    int f = locked_folder = open(path, O_RDONLY);
    return f < 0 ? -1 : !flock(f, LOCK_EX | LOCK_NB) ? 0 : errno == EWOULDBLOCK ? 1 : 2;
}
static const char *folder_enter(const char *path) { // the locked one's name, wherever it goes
    return fchdir(locked_folder) ? path : ".";
}
#        endif
#    endif
#endif

/* Numbers of several bytes are put together byte by byte, for machines of either order. */
enum { LITTLE, BIG }; // which end comes first

static inline uint64_t get_int(const uint8_t *p, int bytes, int order) {
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v = v << 8 | p[order == BIG ? i : bytes - 1 - i];
    return v;
}

static inline void put_int(uint8_t *p, uint64_t v, int bytes, int order) {
    for (int i = 0; i < bytes; i++, v >>= 8) p[order == BIG ? bytes - 1 - i : i] = (uint8_t)v;
}

/* Growing lists: the capacity is the next power of two, so it needs no field. */
static void *grown(void *list, Size n, size_t size) { // room for an item number n
    return n & (n - 1) ? list : realloc(list, (n ? 2 * (size_t)n : 1) * size);
}

static int path_join(char path[PATH_SIZE], const char *dir, const char *name) {
    int n = snprintf(path, PATH_SIZE, "%s/%s", dir, name);
    return n < PATH_SIZE ? 0 : fail("%s: the path is too long", dir);
}

static const char *file_in(const char *dir, const char *name) { // valid until the next call
    static _Thread_local char path[PATH_SIZE];
    return path_join(path, dir, name) ? "" : path;
}

/* The first of n names that there is in the folder; NULL: none. */
static const char *found_in(const char *dir, const char *const *names, int n) {
    for (int i = 0; i < n; i++)
        if (path_kind(file_in(dir, names[i])) != NOTHING) return names[i];
    return NULL;
}

/* Where a file is written; valid until the next call. Another process may be writing the same one:
   only in a folder that is locked for a run is the name free, and then what a kill has left there
   is taken again. */
static int folder_is_locked;
static const char *hidden(const char *path) {
    static _Thread_local char name[PATH_SIZE + 32];
    char number[16] = "";
    if (!folder_is_locked) snprintf(number, sizeof number, ".%d", process_number());
    snprintf(name, sizeof name, "%.*s%s.part", PATH_SIZE, path, number);
    return name;
}

static FILE *file_open(const char *path, const char *mode) { // "rb", or "wb" for a new version
    int kind = path_kind(path), writes = *mode == 'w';
    const char *name = writes ? hidden(path) : path, *verb = writes ? "write" : "open";
    if (!*path) return fail("a file's name is empty, or the path to it is too long"), NULL;
    FILE *f = kind == FOLDER || kind == DEVICE ? NULL : file_stream(name, mode);
    if (kind == FOLDER || kind == DEVICE)
        fail("cannot %s %s: it is %s", verb, path, kind == FOLDER ? "a folder" : "no regular file");
    else if (!f) fail("cannot %s %s: %s", verb, name, strerror(errno));
    return f;
}

/* `bad`: the file is not what it should be, and the caller has said why. */
static int file_finish(FILE *f, const char *path, int bad) {
    int broken = ferror(f) || fflush(f) || file_to_disk(f);
    if (fclose(f)) broken = 1;
    if (!bad && (broken || file_replace(hidden(path), path)))
        bad = fail("cannot write %s: %s", path, strerror(errno));
    if (bad) file_remove(hidden(path));
    return bad ? -1 : 0;
}

static int bytes_next(FILE *f, void *to, Size n, const char *name) {
    if (n >= 0 && (Size)fread(to, 1, n, f) == n) return 0;
    return fail("%s: cannot be read to its end", name);
}

/* The next n bytes of a file, closed by a zero, to be given back with free(); NULL: fail. */
static void *bytes_read(FILE *f, Size n, Size most, const char *name) {
    if (n < 0 || n > most)
        return fail("%s: %lld bytes, expected at most %lld", name, n, most), NULL;
    char *bytes = zalloc(n + 1, 1);
    if (!bytes || !bytes_next(f, bytes, n, name)) return bytes;
    free(bytes);
    return NULL;
}

static void *file_read(const char *path, Size most, Size *n) {
    FILE *f = file_open(path, "rb");
    if (!f) return NULL;
    *n = file_size(f);
    void *bytes = bytes_read(f, *n, most, path);
    fclose(f);
    return bytes;
}

/* 0: this is a folder; else -1, why not, and what to do about it. */
static int folder_lacks(const char *dir, const char *advice) {
    int kind = path_kind(dir), missing = !errno || errno == ENOENT || errno == ENOTDIR;
    if (kind == FOLDER) return 0;
    if (kind != NOTHING) return fail("%s: it is no folder; %s", dir, advice);
    return fail("%s: %s; %s", dir, missing ? "no such folder" : strerror(errno), advice);
}

/* Make a folder and those above it; 0 also where it exists already. */
static int folder_make(const char *path) {
    char so_far[PATH_SIZE] = "";
    if (!*path || strlen(path) >= PATH_SIZE)
        return fail("cannot make the folder \"%s\": its name is empty or too long", path);
    for (size_t i = 0; path[i]; i++) {
        so_far[i] = path[i];
        int ends = path[i + 1] == '/' || !path[i + 1];
        if (!ends || path_kind(so_far) == FOLDER || !folder_create(so_far)) continue;
        int reason = errno;
        if (path_kind(so_far) != FOLDER) // else another process has just made it
            return fail("cannot make the folder %s: %s", so_far, strerror(reason));
    }
    return 0;
}

/* ==== 10 images =================================================================================
   Images come from files as pictures of n_px x n_px (paper, sections 3.1 and 3.2). The idea to take
   away: the well-known sets are all files of equally long records, so one table says how they
   differ and one loop reads them. Pictures shrink as they come in; memory holds the results and one
   picture. */

enum { MAX_SIDE = 32768, MAX_PX = 256, MAX_PICTURES = 10000000 };

/* Resizing by area. A line of n source pixels that becomes px is measured in units of which a
   source pixel has px and an output pixel n. How much of output pixel i source pixel x covers: */
static Size overlap(Size x, Size i, Size n, Size px) {
    Size from = x * px > i * n ? x * px : i * n;
    return min((x + 1) * px, (i + 1) * n) - from;
}

/* The same as image_resize; step: how far apart rows, columns and colours are in memory. */
static int resize(const uint8_t *p, Size width, Size height, const Size step[3], uint8_t *out,
                  Size px) {
    if (px < 1 || px > MAX_PX) return fail("cannot resize to %lld pixels: not 1 to %d", px, MAX_PX);
    if (width < 1 || width > MAX_SIDE || height < 1 || height > MAX_SIDE)
        return fail("cannot resize %lld x %lld pixels: not 1 to %d", width, height, MAX_SIDE);
    Size n = min(width, height);
    p += (height - n) / 2 * step[0] + (width - n) / 2 * step[1];
    for (Size i = 0; i < px; i++)
        for (Size j = 0; j < px; j++) {
            Size sum[3] = {0}; // over n * n: at most 255 * n * n
            for (Size y = i * n / px; y * px < (i + 1) * n; y++)
                for (Size x = j * n / px; x * px < (j + 1) * n; x++) {
                    Size w = overlap(y, i, n, px) * overlap(x, j, n, px);
                    for (int c = 0; c < 3; c++)
                        sum[c] += w * p[y * step[0] + x * step[1] + c * step[2]];
                }
            for (int c = 0; c < 3; c++) *out++ = (uint8_t)((sum[c] + n * n / 2) / (n * n));
        }
    return 0;
}

int image_resize(const uint8_t *rgb, Size width, Size height, uint8_t *out, Size px) {
    Size row = 3 * min(width, MAX_SIDE); // a wider one is refused
    return resize(rgb, width, height, (Size[]){row, 3, 1}, out, px);
}

static int is_space(int c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* One of a PNM header's numbers, and the one white space behind it; -1: it is not 1 to limit. As
   Netpbm has it, a '#' starts a comment that counts, with all up to the end of its line, as that
   line end. */
static Size pnm_number(FILE *f, Size limit) {
    for (Size v = -1;;) { // no digit yet
        int c = getc(f);
        if (c == '#')
            while (c != '\n' && c != '\r' && c != EOF) c = getc(f);
        if (is_space(c) && v >= 0) return v >= 1 && v <= limit ? v : -1;
        if (is_space(c)) continue;
        if (c < '0' || c > '9') return -1;
        v = min((v < 0 ? 0 : v * 10) + c - '0', limit + 1);
    }
}

/* A PPM (P6) or PGM (P5), brought to px x px. There is room for pixels only where the header and
   the file's length agree. Samples are brought to one byte each where they are. */
static int pnm_read(FILE *f, const char *path, uint8_t *out, Size px) {
    int p = getc(f), type = getc(f), next = ungetc(getc(f), f);
    if (p != 'P' || (type != '5' && type != '6') || !(is_space(next) || next == '#'))
        return fail("%s: wrong magic number, neither P6 (binary PPM) nor P5 (PGM)", path);
    Size width = pnm_number(f, MAX_SIDE), height = pnm_number(f, MAX_SIDE);
    Size maxval = pnm_number(f, 65535), left = file_size(f) - ftello(f);
    if (width < 0 || height < 0 || maxval < 0)
        return fail("%s: its header has no width and height of 1 to %d, and maxval to 65535", path,
                    MAX_SIDE);
    Size channels = type == '5' ? 1 : 3, size = maxval > 255 ? 2 : 1; // of a sample, big-endian
    Size samples = width * height * channels, n = samples * size;
    if (left < n) return fail("%s: truncated, %lld bytes of pixels instead of %lld", path, left, n);
    uint8_t *bytes = bytes_read(f, n, n, path);
    if (!bytes) return -1;
    int bad = 0;
    for (Size i = 0; i < samples && !bad; i++) {
        Size v = (Size)get_int(bytes + i * size, (int)size, BIG);
        if (v > maxval) bad = fail("%s: sample %lld is %lld, above maxval", path, i, v);
        bytes[i] = (uint8_t)((v * 255 + maxval / 2) / maxval);
    }
    bad = bad || resize(bytes, width, height, (Size[]){channels * width, channels, channels == 3},
                        out, px);
    free(bytes);
    return bad;
}

int image_read(const char *path, uint8_t *rgb, Size px) {
    FILE *f = file_open(path, "rb");
    int bad = !f || pnm_read(f, path, rgb, px);
    if (bad && f && ferror(f)) fail("%s: cannot be read to its end", path);
    if (f) fclose(f);
    return bad ? -1 : 0;
}

void dataset_free(Dataset *data) {
    const Images *train = &data->train, *test = &data->test;
    void *pieces[] = {train->rgb,   train->tokens, train->labels,    test->rgb,
                      test->tokens, test->labels,  data->class_names};
    for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) free(pieces[k]);
    *data = (Dataset){.n_class = 0};
}

static uint8_t *images_at(const Images *set, Size i) {
    return set->rgb + i * set->px * set->px * 3;
}

/* Make room for one more picture, without a label at first. Returns its pixels; NULL: fail. */
static uint8_t *images_add(Images *set) {
    if (set->n == MAX_PICTURES) return fail("more than %d pictures", MAX_PICTURES), NULL;
    uint8_t *rgb = grown(set->rgb, set->n, set->px * set->px * 3);
    if (rgb) set->rgb = rgb;
    uint16_t *labels = grown(set->labels, set->n, sizeof *labels);
    if (labels) set->labels = labels;
    if (!rgb || !labels) return fail("out of memory for %lld pictures", set->n + 1), NULL;
    labels[set->n] = NO_LABEL;
    return images_at(set, set->n++);
}

/* The length of the UTF-8 character at p, 1 to 4 bytes, and its code; 0: there is none, but a stray
   or missing continuation, a form longer than needed, a surrogate, a code above 10FFFF. */
static int utf8_length(const char *p, uint32_t *code) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    uint8_t c = (uint8_t)*p;
    int n = c < 0x80 ? 1 : c < 0xc0 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf8 ? 4 : 0;
    *code = n < 2 ? c : c & (0x7fu >> n);
    for (int i = 1; i < n; i++) {
        if (((uint8_t)p[i] & 0xc0) != 0x80) return 0;
        *code = *code << 6 | ((uint8_t)p[i] & 0x3f);
    }
    return *code < least[n] || *code > 0x10ffff || *code >> 11 == 0xd800 >> 11 ? 0 : n;
}

/* Names of folders can be any bytes, those in a model's files are UTF-8. What is none is taken for
   Latin-1, in which every byte is a character; the first one for which there is no room ends it. */
static void name_copy(ClassName out, const char *name) {
    uint32_t code;
    for (Size used = 0; *name;) {
        int n = utf8_length(name, &code), bytes = n ? n : 2;
        const char latin[] = {(char)(0xc0 | (uint8_t)*name >> 6), (char)(0x80 | (*name & 0x3f))};
        if (used + bytes >= (Size)sizeof(ClassName)) break;
        memcpy(out + used, n ? name : latin, bytes);
        out[used += bytes] = 0;
        name += n ? n : 1;
    }
    text_clean(out);
}

/* The number of a class, which is added where it is not known yet; -1: fail. */
static int class_number(Dataset *data, const char *text) {
    ClassName name = "";
    name_copy(name, text);
    for (Size c = data->n_class - 1; c >= 0; c--)
        if (!strcmp(data->class_names[c], name)) return (int)c;
    if (data->n_class == NO_LABEL) return fail("more than %d classes", NO_LABEL);
    ClassName *list = grown(data->class_names, data->n_class, sizeof *list);
    if (!list) return fail("out of memory for class names");
    data->class_names = list;
    strcpy(list[data->n_class], name);
    return (int)data->n_class++;
}

/* Class names, one to a line of the file at path; where there is no such file, n numbers. Labels in
   records are bytes, so there is no use in more than 256 names. */
static int class_names_read(Dataset *data, const char *path, Size n) {
    const Size most = 256 * sizeof(ClassName);
    int bad = 0, is_there = path_kind(path) != NOTHING;
    Size bytes;
    char *text = is_there ? file_read(path, most, &bytes) : zalloc(n, 24), *next = text;
    if (!text) return -1;
    for (Size c = 0; c < n && !is_there; c++) next += sprintf(next, "%lld\n", c);
    for (char *line = strtok_r(text, "\r\n", &next); line && !bad;
         line = strtok_r(NULL, "\r\n", &next)) {
        char *end = line + strlen(line);
        while (end > line && is_space(end[-1])) *--end = 0;
        Size known = data->n_class, number = *line ? class_number(data, line) : known;
        bad = number < 0;
        if (!bad && number != known) bad = fail("%s: class %s stands there twice", path, line);
    }
    free(text);
    if (!bad && !data->n_class) bad = fail("%s: empty, no class names", path);
    return bad ? -1 : 0;
}

/* Sets of records. What a file is, if not just pictures for training: */
enum { OF_TEST = 1, LABELS = 2, IF_THERE = 4 };

typedef struct {
    const char *name, *classes; // the set's, and that of its file of class names
    struct {
        const char *name;
        int is;
    } files[8];      // a file of labels follows that of its pictures; NULL closes the list
    int side;        // of a picture in planes r, g, b; 0: an IDX header says, there is one, grey
    int by_column;   // a plane's pixels go down columns, not along rows
    int label_bytes; // of labels in front of each picture; the last one counts
    int first_label; // number of the first class
    int n_class;     // where no file has the names
} Layout;

// clang-format off
static const Layout layouts[] = {
    {"CIFAR-10", "batches.meta.txt", .n_class = 10, .side = 32, .label_bytes = 1,
     .files = {{"data_batch_1.bin", 0}, {"data_batch_2.bin", IF_THERE},
               {"data_batch_3.bin", IF_THERE}, {"data_batch_4.bin", IF_THERE},
               {"data_batch_5.bin", IF_THERE}, {"test_batch.bin", OF_TEST}}},
    {"CIFAR-100", "fine_label_names.txt", .n_class = 100, .side = 32, .label_bytes = 2,
     .files = {{"train.bin", 0}, {"test.bin", OF_TEST}}}, // labels: coarse, fine
    {"STL-10", "class_names.txt", .n_class = 10, .side = 96, .by_column = 1, .first_label = 1,
     .files = {{"train_X.bin", 0}, {"train_y.bin", LABELS}, {"unlabeled_X.bin", IF_THERE},
               {"test_X.bin", OF_TEST}, {"test_y.bin", OF_TEST | LABELS}}},
    {"IDX", "class_names.txt", .n_class = 10,
     .files = {{"train-images-idx3-ubyte", 0}, {"train-labels-idx1-ubyte", LABELS},
               {"t10k-images-idx3-ubyte", OF_TEST}, {"t10k-labels-idx1-ubyte", OF_TEST | LABELS}}},
};
// clang-format on

/* Is a file there, as it is (1) or only packed as the sets' makers publish it (2)? */
static int file_form(const char *path) {
    char packed[PATH_SIZE + 4];
    snprintf(packed, sizeof packed, "%s.gz", path);
    return path_kind(path) != NOTHING ? 1 : path_kind(packed) != NOTHING ? 2 : 0;
}

/* Read a file of n equal records: labels, of which the last one counts, then pixels; either may be
   missing. Pictures are added to the set, labels alone belong to those that are there. An IDX
   file's header has two zero bytes, 8 for unsigned bytes, the number of dimensions, then each,
   big-endian: n, or n, height, width. */
static int records_read(Dataset *data, const Layout *layout, int is, FILE *f, const char *path) {
    Images *set = is & OF_TEST ? &data->test : &data->train;
    Size dims = is & LABELS ? 1 : 3, header = layout->side ? 0 : 4 + 4 * dims, bytes = file_size(f);
    Size magic = 0x800 + dims, head[4] = {magic, 0, layout->side, layout->side};
    uint8_t raw[16];
    if (bytes < 1 || bytes < header) return fail("%s: empty or truncated", path);
    if (bytes_next(f, raw, header, path)) return -1;
    for (Size k = 0; 4 * k < header; k++) head[k] = (Size)get_int(raw + 4 * k, 4, BIG);
    Size h = dims == 1 ? 1 : head[2], w = dims == 1 ? 1 : head[3];
    if (head[0] != magic)
        return fail("%s: wrong magic number 0x%08llx instead of 0x%08llx", path, head[0], magic);
    if (h < 1 || h > MAX_SIDE || w < 1 || w > MAX_SIDE)
        return fail("%s: pictures of %lld x %lld pixels, not 1 to %d", path, w, h, MAX_SIDE);
    Size labels = dims == 1 ? 1 : layout->label_bytes, colours = header ? 1 : 3;
    Size size = dims == 1 ? 1 : labels + colours * h * w;
    Size n = header ? head[1] : ceil_div(bytes, size); // < 2^32, and with a header size <= 2^30
    if (bytes != header + n * size)
        return fail("%s: %lld bytes, expected a header of %lld and %lld records of %lld", path,
                    bytes, header, n, size);
    if (dims == 1 && n != set->n) return fail("%s: %lld labels for %lld pictures", path, n, set->n);
    Size step[3] = {layout->by_column ? 1 : w, layout->by_column ? h : 1, header ? 0 : h * w};
    Size start = dims == 1 ? 0 : set->n, first = layout->first_label;
    uint8_t *record = zalloc(n ? size : 0, 1);
    int bad = !record;
    for (Size i = 0; i < n && !bad; i++) {
        uint8_t *rgb = dims == 1 ? NULL : images_add(set);
        bad = bytes_next(f, record, size, path) ||
              (dims == 3 && (!rgb || resize(record + labels, w, h, step, rgb, set->px)));
        Size label = labels ? record[labels - 1] - first : NO_LABEL;
        if (!bad && labels && (label < 0 || label >= data->n_class))
            bad = fail("%s: record %lld (counted from 0) has label %lld, not %lld to %lld", path, i,
                       label + first, first, first + data->n_class - 1);
        if (!bad) set->labels[start + i] = (uint16_t)label;
    }
    free(record);
    return bad;
}

static int layout_read(Dataset *data, const Layout *layout, const char *dir) {
    int bad = class_names_read(data, file_in(dir, layout->classes), layout->n_class);
    for (int k = 0; layout->files[k].name && !bad; k++) {
        const char *path = file_in(dir, layout->files[k].name);
        int is = layout->files[k].is, form = file_form(path);
        if (!form && is & IF_THERE) continue;
        if (form == 2) return fail("%s is packed: in its folder, run gunzip -k *.gz", path);
        FILE *f = file_open(path, "rb");
        bad = !f || records_read(data, layout, is, f, path);
        if (f) fclose(f);
    }
    return bad ? -1 : 0;
}

/* Folders of pictures. */

/* Of pointers to names, or of structs that begin with one, such as Stored. */
static int by_name(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The n names in a folder, in strcmp's order in every locale; to be freed also where it fails. */
static int folder_names(const char *dir, char ***names, Size *n) {
    Folder *folder = folder_open(dir);
    int bad = 0;
    if (!folder) return fail("cannot read the folder %s: %s", dir, strerror(errno));
    for (const char *name; !bad && (name = folder_next(folder));) {
        char **list = grown(*names, *n, sizeof *list);
        if (list) *names = list;
        if (!list || !(list[*n] = strdup(name))) bad = fail("%s: out of memory for its names", dir);
        else ++*n;
    }
    if (!bad && errno) bad = fail("cannot read the folder %s: %s", dir, strerror(errno));
    folder_close(folder);
    if (*names) qsort(*names, *n, sizeof **names, by_name);
    return bad;
}

static int has_ending(const char *name, const char *ending) { // in whatever case
    const char *dot = strrchr(name, '.');
    return dot && !strcasecmp(dot, ending);
}

static int rising(const void *a, const void *b) {
    Size x = *(const Size *)a, y = *(const Size *)b;
    return (x > y) - (x < y);
}

/* Bring those of a class's n pictures to the front of index that are not for training: a share in
   percent, at least one of two or more, the same ones each time. Returns how many. */
static Size hold_out(Size *index, Size n, Size percent, Size label) {
    Size held = (percent * n + 50) / 100;
    random_shuffle(index, n, 0, stream_of(FOR_SPLIT, (uint64_t)(label + 1)));
    return held == 0 && n > 1 ? 1 : held;
}

/* Add those n of a folder's entries that `index` lists to a set, with the class's label; without,
   where class is NULL. Where set is NULL, 15 % go to the test set, the others to training. */
static int class_read(Dataset *data, Images *set, const char *dir, const char *class, char **names,
                      Size *index, Size n) {
    Size known = data->n_class, held = 0;
    if (!class && known)
        return fail("%s: pictures lie beside the classes' folders, not in one", dir);
    int label = class ? class_number(data, class) : NO_LABEL, bad = label < 0;
    if (!bad && class && set != &data->test && data->n_class == known)
        return fail("%s: another folder is of class %s, too", dir, data->class_names[label]);
    if (set == &data->test && data->n_class > known)
        return fail("%s: no training pictures are of this class", dir);
    if (!set) held = hold_out(index, n, 15, class ? label : -1);
    qsort(index, held, sizeof *index, rising);
    qsort(index + held, n - held, sizeof *index, rising);
    for (Size i = 0; i < n && !bad; i++) {
        Images *to = set ? set : i < held ? &data->test : &data->train;
        uint8_t *rgb = images_add(to);
        if (rgb) to->labels[to->n - 1] = (uint16_t)label;
        bad = !rgb || image_read(file_in(dir, names[index[i]]), rgb, to->px);
    }
    return bad ? -1 : 0;
}

/* A folder that igpt has written to, as ./out beside the pictures may be, is no class. */
static int is_output(const char *dir) {
    static const char *const files[] = {"config.json", "samples.png", "completions.png",
                                        "palette.png", "probe.csv"};
    return found_in(dir, files, 5) != NULL;
}

static Size pictures_in(const Dataset *data) { return data->train.n + data->test.n; }

/* Add the pictures in dir, in order of their names, as class_read does: those of a class; or, class
   NULL, those in its sub-folders, each of which is a class, or those in dir where none is. */
static int folder_read(Dataset *data, Images *set, const char *dir, const char *class) {
    char path[PATH_SIZE], empty[PATH_SIZE] = "";
    const char *foreign = NULL;
    char **names = NULL;
    Size before = pictures_in(data), n = 0, count = 0, *index = NULL;
    int bad = folder_names(dir, &names, &count) || !(index = zalloc(count, sizeof *index));
    for (Size i = 0; i < count && !bad; i++) {
        const char *name = names[i];
        Size so_far = pictures_in(data);
        if (*name == '.') continue;
        bad = path_join(path, dir, name);
        if (has_ending(name, ".ppm") || has_ending(name, ".pgm")) index[n++] = i;
        else if (has_ending(name, ".jpg") || has_ending(name, ".jpeg") || has_ending(name, ".png"))
            foreign = name;
        else if (!bad && !class && path_kind(path) == FOLDER && !is_output(path)) {
            bad = folder_read(data, set, path, name);
            if (pictures_in(data) == so_far) strcpy(empty, path);
        }
    }
    if (!bad && n > 0) bad = class_read(data, set, dir, class, names, index, n);
    if (!bad && foreign && pictures_in(data) == before)
        bad = fail("%s/%s is no PPM file; to make one of each, in that folder: mogrify -format ppm "
                   "-auto-orient -background white -alpha remove -resize '256x256^' ./*%s",
                   dir, foreign, strrchr(foreign, '.'));
    if (!bad && !class && data->n_class && *empty)
        bad = fail("%s: no picture in it that can be read", empty);
    for (Size i = 0; i < count; i++) free(names[i]);
    free(names);
    free(index);
    return bad ? -1 : 0;
}

/* Pictures in train/ and test/, or in dir itself, which is then split. */
static int pictures_read(Dataset *data, const char *dir) {
    char train[PATH_SIZE], test[PATH_SIZE];
    if (path_join(train, dir, "train") || path_join(test, dir, "test")) return -1;
    if (path_kind(train) != FOLDER && path_kind(test) != FOLDER)
        return folder_read(data, NULL, dir, NULL);
    return folder_read(data, &data->train, train, NULL) ||
           folder_read(data, &data->test, test, NULL);
}

/* Find out what lies in dir, and read it. */
static int recognise(Dataset *data, const char *dir) {
    int bad = pictures_read(data, dir);
    const char *found = pictures_in(data) ? "PPM pictures" : NULL;
    const Layout *layout = NULL; // where there is one, other folders' faults do not matter
    for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++) {
        int k = 0;
        while (layouts[l].files[k].name && !file_form(file_in(dir, layouts[l].files[k].name))) k++;
        if (!layouts[l].files[k].name) continue;
        layout = &layouts[l];
        if (found)
            return fail("%s: two data sets in one folder, %s and %s", dir, found, layout->name);
        found = layout->name;
    }
    if (layout) return data->n_class = 0, layout_read(data, layout, dir); // nor their classes
    if (bad || found) return bad;
    return fail("%s: no data set found; looked for data_batch_1.bin (CIFAR-10), train.bin "
                "(CIFAR-100), train_X.bin (STL-10), train-images-idx3-ubyte (IDX), *.ppm and "
                "*.pgm, also in sub-folders",
                dir);
}

int dataset_read(Dataset *data, const char *dir, Size n_px) {
    *data = (Dataset){.n_class = 0};
    if (n_px < 1 || n_px > MAX_PX) return fail("n_px %lld is not 1 to %d", n_px, MAX_PX);
    if (folder_lacks(dir, "igpt's own pictures lie in its source's data/emoji")) return -1;
    data->train.px = data->test.px = n_px;
    int bad = recognise(data, dir);
    if (!bad && (data->train.n == 0 || data->test.n == 0))
        bad = fail("%s: pictures: %lld for training, %lld for testing; there must be some of each",
                   dir, data->train.n, data->test.n);
    if (bad) dataset_free(data);
    return bad ? -1 : 0;
}

/* Where pixel i comes from, which may lie beyond the edges at 0 and last: -1 mirrors to 1, last + 1
   to last - 1. */
static Size reflect(Size i, Size last) { return last - llabs(last - llabs(i)); }

void image_augment(const uint16_t *in, uint16_t *out, Size px, int flip, Size pad, Size dy,
                   Size dx) {
    for (Size y = 0; y < px; y++)
        for (Size x = 0; x < px; x++) {
            Size row = reflect(y + dy - pad, px - 1), column = reflect(x + dx - pad, px - 1);
            out[y * px + x] = in[row * px + (flip ? px - 1 - column : column)];
        }
}

int images_quantise(Images *set, const real *palette, Size K) {
    Size n = set->n * set->px * set->px;
    set->tokens = zalloc(n, sizeof *set->tokens);
    if (!set->tokens || palette_index(set->tokens, set->rgb, n, palette, K)) return -1;
    free(set->rgb);
    set->rgb = NULL;
    return 0;
}

int labels_split(const Images *set, Size n_class, Size per_class, uint64_t seed, Size draw,
                 Subset *train, Subset *validation) {
    *train = (Subset){0, zalloc(set->n, sizeof *train->index)};
    *validation = (Subset){0, zalloc(set->n, sizeof *validation->index)};
    int bad = !train->index || !validation->index;
    for (Size c = 0; c < n_class && !bad; c++) {
        Size *index = train->index + train->n, n = 0; // at first all of the class
        for (Size i = 0; i < set->n; i++)
            if (set->labels[i] == c) index[n++] = i;
        Size held = hold_out(index, n, 10, c), left = n - held;
        memcpy(validation->index + validation->n, index, held * sizeof *index);
        memmove(index, index + held, left * sizeof *index);
        if (left < per_class)
            bad = fail("class %lld has %lld labels besides those for validation, not %lld", c, left,
                       per_class);
        random_shuffle(index, left, seed, stream_of(FOR_LABELS, (uint64_t)(draw << 16 | c)));
        validation->n += held;
        train->n += per_class ? per_class : left;
    }
    if (!bad) {
        qsort(train->index, train->n, sizeof(Size), rising);
        qsort(validation->index, validation->n, sizeof(Size), rising);
        return 0;
    }
    free(train->index);
    free(validation->index);
    *train = *validation = (Subset){0, NULL};
    return -1;
}

/* ==== 11 checkpoints ============================================================================
   A model directory is a Hugging Face ImageGPT directory: weights in a safetensors file, the rest
   in JSON. Both come from strangers, so the readers trust nothing: whatever the format does not
   allow is refused, by a sentence that names the place, before anything is sized or read by it.

   JSON first. There is no tree: a text is checked once, and from then on a value is a pointer to
   its first character. The idea to take away: one function, json_skip, both checks a value and
   finds its end, and everything else steps along by it. */

enum { JSON_DEPTH = 64, JSON_BYTES = 1 << 24 }; // far more than any model's header or palette has

static const char *json_space(const char *p) { return p + strspn(p, " \t\n\r"); }

/* The code of \u and four hexadecimal digits; 0: something else, or \u0000, which no string here
   may hold. */
static uint32_t json_hex(const char *p) {
    char digits[5] = "";
    if (strncmp(p, "\\u", 2) || strspn(p + 2, "0123456789abcdefABCDEF") < 4) return 0;
    memcpy(digits, p + 2, 4);
    return (uint32_t)strtoul(digits, NULL, 16);
}

/* The length of what a string may hold at p, a character or an escape, and its code; 0: neither. */
static int json_character(const char *p, uint32_t *code) {
    static const char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    const char *letter = *p == '\\' && p[1] ? strchr(letters, p[1]) : NULL;
    if ((uint8_t)*p < ' ') return 0;
    if (*p != '\\') return utf8_length(p, code);
    if (letter) return *code = (uint8_t)meant[letter - letters], 2;
    uint32_t high = *code = json_hex(p);
    if (high >> 11 != 0xd800 >> 11) return high ? 6 : 0;
    /* Half of a surrogate pair, which together gives 20 bits. */
    uint32_t low = json_hex(p + 6);
    if (high >= 0xdc00 || low < 0xdc00 || low >= 0xe000) return 0;
    *code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
    return 12;
}

/* The length of a word, or of a number no larger than a double; 0: neither. strtod takes more than
   JSON has: zeros in front, a point without digits on both sides, hexadecimal, "inf". */
static Size json_plain(const char *p) {
    static const char *const words[] = {"true", "false", "null"}, decimal[] = "0123456789";
    for (int i = 0; i < 3; i++)
        if (!strncmp(p, words[i], strlen(words[i]))) return (Size)strlen(words[i]);
    const char *whole = p + (*p == '-'), *point = whole + strspn(whole, decimal);
    if (point == whole || (*whole == '0' && point > whole + 1)) return 0;
    if (*point == '.' && !strspn(point + 1, decimal)) return 0;
    char *end;
    double x = strtod(p, &end);
    return isfinite(x) && end == p + strspn(p, "+-.0123456789eE") ? end - p : 0;
}

/* Step over this character and white space; 0: another one stands there. */
static int json_take(const char **p, char c) {
    if (**p != c) return 0;
    *p = json_space(*p + 1);
    return 1;
}

/* Step over a value, inside `depth` brackets, and white space. Where that fails *p is the place. */
static int json_skip(const char **p, int depth) {
    char open = **p, close = open == '{' ? '}' : ']';
    uint32_t code;
    if (open == '"') {
        ++*p;
        for (int n; **p != '"'; *p += n)
            if (!(n = json_character(*p, &code))) return -1;
        json_take(p, '"');
        return 0;
    }
    if (open != '{' && open != '[') {
        Size n = json_plain(*p);
        *p = json_space(*p + n);
        return n ? 0 : -1;
    }
    if (depth == JSON_DEPTH) return -1;
    json_take(p, open);
    if (json_take(p, close)) return 0;
    do {
        if (open == '{' && (**p != '"' || json_skip(p, depth) || !json_take(p, ':'))) return -1;
        if (json_skip(p, depth + 1)) return -1;
    } while (json_take(p, ','));
    return json_take(p, close) ? 0 : -1;
}

int json_check(const char *text, Size length, const char *name) {
    const char *p = json_space(text);
    if (!json_skip(&p, 0) && p == text + length) return 0;
    return fail("%s: byte %lld: not as JSON has it: %.20s", name, (Size)(p - text), p);
}

char *json_read(const char *path, Size most) {
    Size n;
    char *text = file_read(path, most, &n);
    if (!text || !json_check(text, n, path)) return text;
    free(text);
    return NULL;
}

const char *json_first(const char *value) {
    value = value ? json_space(value) : "";
    if (!json_take(&value, '{') && !json_take(&value, '[')) return NULL;
    return *value == '}' || *value == ']' ? NULL : value;
}

const char *json_value(const char *key) {
    json_skip(&key, 0);
    json_take(&key, ':');
    return key;
}

const char *json_next(const char *item) {
    if (!item) return NULL;
    json_skip(&item, 0);
    if (json_take(&item, ':')) json_skip(&item, 0);
    return json_take(&item, ',') ? item : NULL;
}

int json_text(const char *value, char *out, Size room) {
    const char *end = out + room;
    uint32_t code = 0;
    if (!value || *value != '"' || room < 1) return -1;
    for (value++; *value != '"';) {
        value += json_character(value, &code);
        int n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
        if (end - out <= n) return *out = 0, -1;
        for (int i = n - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80 | (code & 0x3f));
        *out = (char)(n == 1 ? code : (0xf00u >> n & 0xff) | code);
        out += n;
    }
    *out = 0;
    return 0;
}

double json_number(const char *value) {
    if (!value) return NAN;
    if (*value == 't' || *value == 'f') return *value == 't';
    return *value == '-' || (*value >= '0' && *value <= '9') ? strtod(value, NULL) : NAN;
}

const char *json_get(const char *value, const char *key) {
    const char *found = NULL;
    char name[1024];
    if (!value || *json_space(value) != '{') return NULL;
    for (const char *item = json_first(value); item; item = json_next(item))
        if (!json_text(item, name, sizeof name) && !strcmp(name, key)) found = json_value(item);
    return found;
}

/* A whole number from 0 to 2^53 - 1, beyond which doubles skip some; else -1. */
static Size json_whole(const char *value) {
    double x = json_number(value);
    return x >= 0 && x < 0x1p53 && x == floor(x) && *value != 't' && *value != 'f' ? (Size)x : -1;
}

/* The whole numbers of an array; returns how many, -1: it is no array of at most `most` of them. */
static int json_sizes(const char *value, Size *out, int most) {
    int n = 0;
    if (!value || *value != '[') return -1;
    for (const char *item = json_first(value); item; item = json_next(item))
        if (n == most || (out[n++] = json_whole(item)) < 0) return -1;
    return n;
}

/* Write a string. What is no UTF-8 (a folder's name can be anything) becomes U+FFFD, so that the
   file stays JSON. */
static void json_quote(FILE *f, const char *string) {
    uint32_t code;
    fputc('"', f);
    for (int n; *string; string += n ? n : 1) {
        n = utf8_length(string, &code);
        if (!n) fputs("\xef\xbf\xbd", f);
        else if ((uint8_t)*string < ' ') fprintf(f, "\\u%04x", (unsigned)*string);
        else fprintf(f, *string == '"' || *string == '\\' ? "\\%.*s" : "%.*s", n, string);
    }
    fputc('"', f);
}

/* Safetensors: 8 bytes hold the header's length, the header is a JSON object of tensors (dtype,
   shape, and the first and one-past-last byte counted from the header's end), the rest is data. The
   data must be covered by the tensors exactly: no bytes can hide in a file, and none are shared. */

static const struct {
    const char *name;
    int bytes; // of an element; 0: not known
} dtypes[] = {{"F64", 8},     {"F32", 4},     {"F16", 2},  {"BF16", 2},   {"I64", 8}, {"U64", 8},
              {"I32", 4},     {"U32", 4},     {"I16", 2},  {"U16", 2},    {"I8", 1},  {"U8", 1},
              {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"BOOL", 1}, {"unknown", 0}};
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes, REAL_DTYPE = sizeof(real) == 8 ? F64 : F32 };

/* How many elements a shape has; -1: 2^53 or more, from where doubles are not exact. */
static Size shape_count(const Size *shape, int n_dim) {
    double count = 1;
    for (int i = 0; i < n_dim; i++) count *= (double)shape[i];
    return count < 0x1p53 ? (Size)count : -1;
}

/* The header's entry of one tensor, whose range of bytes must fit its shape. */
static int tensor_entry(const Safetensors *s, const char *name, const char *entry, Stored *t) {
    char dtype[16] = "";
    Size range[2];
    *t = (Stored){.name = name};
    t->n_dim = json_sizes(json_get(entry, "shape"), t->shape, MAX_DIMS);
    t->count = shape_count(t->shape, t->n_dim);
    int bad = json_text(json_get(entry, "dtype"), dtype, sizeof dtype) || t->n_dim < 0 ||
              t->count < 0 || json_sizes(json_get(entry, "data_offsets"), range, 2) != 2;
    while (t->dtype < N_DTYPES - 1 && strcmp(dtypes[t->dtype].name, dtype)) t->dtype++;
    Size bytes = dtypes[t->dtype].bytes; // 0: any number of bytes will do
    if (bad || range[1] < range[0] || (bytes && range[1] - range[0] != t->count * bytes))
        return fail("%s: tensor %.200s: expected a dtype, a shape of at most %d whole numbers, and "
                    "two data_offsets as far apart as the bytes of both",
                    s->path, name, MAX_DIMS);
    t->begin = s->start + range[0];
    t->end = s->start + range[1];
    return 0;
}

static int by_place(const void *a, const void *b) {
    const Stored *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

/* Read all entries. Each must be sound, and together their data must fill the file up to its end:
   no overlap, no hole, no rest. They are kept in the order of their names, to be found by. */
static int entries_read(Safetensors *s) {
    enum { SHORTEST = 48 }; // "":{"dtype":"","shape":[],"data_offsets":[0,0]},
    Size n = 0, reached = s->start;
    Stored *list = s->tensors = zalloc(s->start / SHORTEST + 2, sizeof *list);
    char *name = s->names = zalloc(s->start, 1); // decoded, none is longer
    if (!list || !name) return -1;
    const char *end = name + s->start;
    for (const char *key = json_first(s->header); key; key = json_next(key)) {
        const char *value = json_value(key), *item = json_first(value);
        json_text(key, name, end - name);
        if (!strcmp(name, "__metadata__")) {
            while (*value == '{' && item && *json_value(item) == '"') item = json_next(item);
            if (*value == '{' && !item) continue;
            return fail("%s: __metadata__: expected an object of strings only", s->path);
        }
        if (tensor_entry(s, name, value, &list[n++])) return -1;
        name += strlen(name) + 1;
    }
    qsort(list, n, sizeof *list, by_place);
    list[n].begin = s->size; // behind the last one the file ends
    for (Size i = 0; i <= n; reached = list[i++].end)
        if (list[i].begin != reached)
            return fail("%s: byte %lld belongs to %s", s->path, min(list[i].begin, reached),
                        list[i].begin > reached ? "no tensor"
                        : i < n                 ? "two tensors"
                                                : "a tensor, but the file ends there: truncated");
    qsort(list, n, sizeof *list, by_name);
    s->n_tensors = n;
    for (Size i = 1; i < n; i++)
        if (!by_name(&list[i - 1], &list[i]))
            return fail("%s: tensor %.200s stands there twice", s->path, list[i].name);
    return 0;
}

int safetensors_open(Safetensors *s, const char *path) {
    uint8_t head[9] = {0}; // the header's length and first character
    *s = (Safetensors){.file = file_open(path, "rb")};
    if (!s->file) return -1;
    snprintf(s->path, sizeof s->path, "%.*s", (int)sizeof s->path - 1, path);
    s->size = file_size(s->file);
    int bad = fread(head, 1, 9, s->file) != 9 || ungetc(head[8], s->file) != '{';
    uint64_t n = get_int(head, 8, LITTLE);
    s->start = (Size)(8 + n);
    if (bad || n > (uint64_t)min(JSON_BYTES, s->size - 8))
        bad = fail("%s: no safetensors file: no header in braces, as long as the file says, of at "
                   "most %d bytes",
                   path, JSON_BYTES);
    else
        bad = !(s->header = bytes_read(s->file, (Size)n, JSON_BYTES, path)) ||
              json_check(s->header, (Size)n, path) || entries_read(s);
    if (bad) safetensors_close(s);
    return bad ? -1 : 0;
}

void safetensors_close(Safetensors *s) {
    if (s->file) fclose(s->file);
    free(s->header);
    free(s->names);
    free(s->tensors);
    *s = (Safetensors){.file = NULL};
}

int safetensors_find(const Safetensors *s, const char *name, Stored *found) {
    if (!s->tensors) return 0; // a closed file
    const Stored *is = bsearch(&name, s->tensors, s->n_tensors, sizeof *is, by_name);
    if (is) *found = *is, found->name = name;
    return is != NULL;
}

int safetensors_metadata(const Safetensors *s, const char *key, char *out, Size room) {
    return json_text(json_get(json_get(s->header, "__metadata__"), key), out, room);
}

typedef union { // a number, or its bits
    float single;
    uint32_t single_bits;
    double wide;
    uint64_t wide_bits;
} Number;

/* An element's value. F16 has sign 1, exponent 5 and fraction 10 bits: where a float has these,
   they make a value 2^112 too small, as the exponents' biases are 127 and 15. */
static double decode(int dtype, uint64_t bits) {
    uint32_t low = (uint32_t)bits, half = low & 0x7fff;
    if (dtype == F64) return (Number){.wide_bits = bits}.wide;
    if (dtype == I64) return (double)(int64_t)bits;
    if (dtype == BF16) low <<= 16; // a float's upper half
    if (dtype != F16) return (double)(Number){.single_bits = low}.single;
    double x = (double)(Number){.single_bits = half << 13}.single * 0x1p112;
    if (half >= 0x7c00) x = half == 0x7c00 ? INFINITY : NAN;
    return low == half ? x : -x;
}

enum { F16_LIMIT = 65520 }; // half way from the largest, 65504, to 65536

/* The other way, to the nearest; of F16, ties to even: x in units of the last place that its
   exponent leaves. Where rounding makes the fraction overflow, the carry raises the exponent, which
   is the right value. */
static uint64_t encode(int dtype, double x) {
    uint64_t sign = signbit(x) ? 0x8000 : 0;
    int exponent;
    if (dtype == F64) return (Number){.wide = x}.wide_bits;
    if (dtype == F32) return (Number){.single = (float)x}.single_bits;
    if (isnan(x)) return sign | 0x7e00;
    if (fabs(x) >= F16_LIMIT) return sign | 0x7c00;
    frexp(x, &exponent);                                       // 2^(exponent - 1) <= |x|
    if (x == 0 || exponent < -13) exponent = -13;              // subnormals share the smallest unit
    int units = (int)nearbyint(ldexp(fabs(x), 11 - exponent)); // 1024 .. 2048, or subnormal
    return sign | (uint64_t)(((exponent + 14) << 10) + units - 1024);
}

int safetensors_read(const Safetensors *s, const Stored *t, real *out, double *wide) {
    if (t->dtype >= OTHER)
        return fail("%s: tensor %s: dtype %s, expected F64, F32, F16, BF16 or I64", s->path,
                    t->name, dtypes[t->dtype].name);
    int bad = fseeko(s->file, t->begin, SEEK_SET);
    for (Size i = 0; i < t->count && !bad; i++) {
        uint64_t bits = 0;
        for (int b = 0; b < dtypes[t->dtype].bytes; b++)
            bits |= (uint64_t)(getc_unlocked(s->file) & 0xff) << 8 * b;
        double x = decode(t->dtype, bits);
        if (out) out[i] = (real)x;
        else if (wide) wide[i] = x;
        else if (x != 0 && !feof(s->file) && !ferror(s->file))
            return fail("%s: tensor %s is not zero: igpt has no biases, nor have OpenAI's models; "
                        "training in transformers moves them",
                        s->path, t->name);
    }
    bad = bad || feof(s->file) || ferror(s->file);
    return bad ? fail("%s: tensor %s: its data cannot be read", s->path, t->name) : 0;
}

/* The header, padded so that the data starts on a multiple of 8; its length is put before it once
   it is known. */
static int header_write(FILE *f, const char *path, const Stored *tensors, Size n,
                        const char *const *metadata) {
    uint8_t length[8] = {0};
    Size reached = 0;
    fwrite(length, 1, 8, f);
    fputs(metadata ? "{\"__metadata__\":{" : "{", f);
    for (int i = 0; metadata && metadata[i]; i++) {
        if (i) fputc(i % 2 ? ':' : ',', f);
        json_quote(f, metadata[i]);
    }
    if (metadata) fputs(n ? "}," : "}", f);
    for (const Stored *t = tensors; t < tensors + n; t++) {
        Size begin = reached;
        reached += shape_count(t->shape, t->n_dim) * dtypes[t->dtype].bytes;
        json_quote(f, t->name);
        fprintf(f, ":{\"dtype\":\"%s\",\"shape\":[", dtypes[t->dtype].name);
        for (int i = 0; i < t->n_dim; i++) fprintf(f, i ? ",%lld" : "%lld", t->shape[i]);
        fprintf(f, "],\"data_offsets\":[%lld,%lld]}%s", begin, reached,
                t + 1 < tensors + n ? "," : "");
    }
    Size start = round_up(ftello(f) + 1, 8);
    fprintf(f, "}%*s", (int)(start - ftello(f) - 1), "");
    put_int(length, (uint64_t)(start - 8), 8, LITTLE);
    fseeko(f, 0, SEEK_SET); // f remembers where that fails
    fwrite(length, 1, 8, f);
    fseeko(f, start, SEEK_SET);
    if (start - 8 <= JSON_BYTES) return 0;
    return fail("%s: its header would be larger than %d bytes", path, JSON_BYTES);
}

int safetensors_write(const char *path, const Stored *tensors, Size n,
                      const char *const *metadata) {
    FILE *f = file_open(path, "wb");
    if (!f) return -1;
    int bad = header_write(f, path, tensors, n, metadata);
    for (const Stored *t = tensors; t < tensors + n && !bad; t++) {
        Size count = shape_count(t->shape, t->n_dim);
        if (t->dtype > F16) bad = fail("%s: tensor %s: its dtype cannot be written", path, t->name);
        for (Size i = 0; i < count && !bad && !ferror(f); i++) {
            double x = t->data ? (double)t->data[i] : t->wide ? t->wide[i] : 0;
            uint64_t bits = encode(t->dtype, x);
            if (isfinite(x) && isinf(decode(t->dtype, bits)))
                bad = fail("%s: tensor %s: %g is too large for %s", path, t->name, x,
                           dtypes[t->dtype].name);
            for (int b = 0; b < dtypes[t->dtype].bytes; b++)
                putc_unlocked((int)(bits >> 8 * b & 0xff), f);
        }
    }
    return file_finish(f, path, bad);
}

/* The model directory. Tensors go out and come in by one list, that of section 4 with Hugging
   Face's biases: this model has none, so they go out as zeros and must come in as zeros. */

/* The list, n long, of a model's tensors in a file; a bias has no data. NULL: no memory. */
static Stored *stored_list(const Model *m, int dtype, Size *n) {
    Stored *list = zalloc(2 * m->n_tensors, sizeof *list), *s = list;
    for (const Tensor *t = m->tensors; list && t < m->tensors + m->n_tensors; t++) {
        const real *data = m->params + t->offset;
        if (t->std < 0) *s++ = (Stored){t->name, dtype, 1, {t->cols}, .data = data}; // a gain
        else *s++ = (Stored){t->name, dtype, 2, {t->rows, t->cols}, .data = data};
        if (*t->bias) *s++ = (Stored){t->bias, dtype, 1, {t->cols}, .data = NULL};
    }
    *n = s - list;
    return list;
}

/* Read a tensor, which must be there in its shape, to where `wanted` would be written from; reals
   must be finite. ImageGPTModel saves without "transformer." in front, and like a classifier
   without lm_head; biases may be missing. */
static int stored_read(const Safetensors *file, const Stored *wanted) {
    const char *name = wanted->name, *bare = strncmp(name, "transformer.", 12) ? name : name + 12;
    real *values = (real *)wanted->data;
    Stored s;
    if (!safetensors_find(file, name, &s) && !safetensors_find(file, bare, &s)) {
        int is_bias = !wanted->data && !wanted->wide;
        int headless =
            safetensors_find(file, "score.weight", &s) || safetensors_find(file, "wte.weight", &s);
        if (is_bias || (headless && !strcmp(name, "lm_head.weight"))) return 0;
        return fail("%s: tensor %s is missing", file->path, name);
    }
    if (s.n_dim != wanted->n_dim || memcmp(s.shape, wanted->shape, sizeof s.shape))
        return fail("%s: tensor %s has %d dimensions and %lld elements, expected %lld x %lld",
                    file->path, name, s.n_dim, s.count, wanted->shape[0],
                    wanted->n_dim == 2 ? wanted->shape[1] : 1);
    if (safetensors_read(file, &s, values, (double *)wanted->wide)) return -1;
    for (Size i = 0; i < s.count && values; i++)
        if (!isfinite(values[i])) return fail("%s: tensor %s is not finite", file->path, s.name);
    return 0;
}

static int weights_load(const Model *m, const Safetensors *file) {
    Size n;
    Stored *list = stored_list(m, F32, &n);
    int bad = !list;
    for (Size i = 0; i < n && !bad; i++) bad = stored_read(file, &list[i]);
    free(list);
    return bad ? -1 : 0;
}

/* The fields of config.json that say what is computed. They are written as they are here, and a
   file that is read must not have other values for them. */
static void config_fields(char fields[1024], const Config *c) {
    snprintf(fields, 1024,
             "{\n  \"model_type\": \"imagegpt\",\n  \"activation_function\": \"quick_gelu\",\n"
             "  \"layer_norm_epsilon\": 1e-05,\n  \"tie_word_embeddings\": false,\n"
             "  \"scale_attn_weights\": true,\n  \"scale_attn_by_inverse_layer_idx\": false,\n"
             "  \"vocab_size\": %lld,\n  \"n_positions\": %lld,\n  \"n_embd\": %lld,\n"
             "  \"n_layer\": %lld,\n  \"n_head\": %lld,\n  \"n_inner\": %lld,\n"
             "  \"igpt_objective\": \"%s\"\n}\n",
             c->n_vocab + 1, positions(c), c->n_embd, c->n_layer, c->n_head, 4 * c->n_embd,
             is_masked(c) ? "bert" : "ar");
}

static int config_save(const Model *m, const char *path) {
    const Size C = m->config.n_class;
    char fields[1024];
    FILE *f = file_open(path, "wb");
    if (!f) return -1;
    fprintf(f, "{\n  \"architectures\": [\"ImageGPTFor%s\"],\n",
            C ? "ImageClassification" : "CausalImageModeling");
    fputs("  \"resid_pdrop\": 0.0,\n  \"embd_pdrop\": 0.0,\n  \"attn_pdrop\": 0.0,\n", f);
    for (int inverse = 0; inverse < 2 && C; inverse++) {
        fputs(inverse ? "  \"label2id\": {" : "  \"id2label\": {", f);
        for (Size k = 0; k < C; k++) {
            if (!inverse) fprintf(f, "\"%lld\": ", k);
            json_quote(f, m->class_names[k]);
            if (inverse) fprintf(f, ": %lld", k);
            fputs(k + 1 < C ? ", " : "},\n", f);
        }
    }
    config_fields(fields, &m->config);
    fputs(fields + strlen("{\n"), f);
    int bad = ftello(f) > JSON_BYTES;
    if (bad) fail("%s: the classes' names would be too long to be read", path);
    return file_finish(f, path, bad);
}

static int config_load(Config *c, const char *json, const char *path) {
    char fields[1024], name[64], objective[8] = "";
    *c = (Config){.n_vocab = json_whole(json_get(json, "vocab_size")) - 1,
                  .n_embd = json_whole(json_get(json, "n_embd")),
                  .n_layer = json_whole(json_get(json, "n_layer")),
                  .n_head = json_whole(json_get(json, "n_head"))};
    Size T = json_whole(json_get(json, "n_positions"));
    while (positions(c) < T && c->n_px < MAX_PX) c->n_px++;
    json_text(json_get(json, "igpt_objective"), objective, sizeof objective);
    if (!strcmp(objective, "bert")) c->objective = OBJECTIVE_BERT;
    if (config_check(c)) return fail("%s: a size is missing or wrong: %s", path, error_text());
    config_fields(fields, c);
    for (const char *key = json_first(fields); key; key = json_next(key)) {
        json_text(key, name, sizeof name);
        const char *is = json_get(json, name), *must = json_value(key);
        if (!is || *is == 'n') continue; // null is Hugging Face's default, which is what it must be
        int length = (int)strcspn(must, ",\n");
        if (*must == '"' ? strncmp(is, must, length)
                         : !(fabs(json_number(is) - json_number(must)) <= 1e-9))
            return fail("%s: field %s is not %.*s", path, name, length, must);
    }
    return 0;
}

int palette_save(const char *path, const real *palette, Size K, Size n_px) {
    FILE *f = file_open(path, "wb");
    if (!f) return -1;
    fprintf(f,
            "{\n  \"image_processor_type\": \"ImageGPTImageProcessor\",\n"
            "  \"do_resize\": true,\n  \"do_normalize\": true,\n"
            "  \"do_color_quantize\": true,\n  \"resample\": 4,\n"
            "  \"size\": {\"height\": %lld, \"width\": %lld},\n  \"clusters\": [",
            n_px, n_px);
    for (Size k = 0; k < K; k++, palette += 3)
        fprintf(f, "%s\n    [%.9g, %.9g, %.9g]", k ? "," : "", (double)palette[0],
                (double)palette[1], (double)palette[2]);
    fprintf(f, "\n  ]\n}\n");
    return file_finish(f, path, 0);
}

static int is_shade(real v) { return fabs((double)v) <= 1.001; } // -1 to 1, but for rounding

real *palette_read(const char *path, Size *K) {
    enum { MOST_COLOURS = 65535 };
    char *json = json_read(path, JSON_BYTES);
    const char *colour = json_first(json_get(json, "clusters"));
    real *palette = json ? zalloc(3 * (MOST_COLOURS + 1), sizeof *palette) : NULL;
    int bad = !palette;
    for (*K = 0; colour && !bad; colour = json_next(colour)) {
        const char *number = json_first(colour);
        real *rgb = palette + 3 * *K;
        for (int c = 0; c < 3; c++, number = json_next(number)) {
            rgb[c] = (real)json_number(number);
            if (!is_shade(rgb[c])) bad = 1;
        }
        if (number || *K == MOST_COLOURS) bad = 1;
        if (!bad) ++*K;
    }
    if (palette && (bad || !*K))
        bad = fail("%s: clusters[%lld] is missing, one too many, or not three numbers from -1 to 1",
                   path, *K);
    free(json);
    if (bad) free(palette);
    return bad ? NULL : palette;
}

int model_save(const Model *m, const char *dir, int dtype) {
    static const char *const metadata[] = {"format", "pt", NULL};
    const Config *c = &m->config;
    Size n;
    Stored *list = stored_list(m, dtype, &n);
    int bad =
        !list || folder_make(dir) ||
        safetensors_write(file_in(dir, "model.safetensors"), list, n, metadata) ||
        palette_save(file_in(dir, "preprocessor_config.json"), m->palette, c->n_vocab, c->n_px) ||
        config_save(m, file_in(dir, "config.json"));
    free(list);
    return bad ? -1 : 0;
}

/* A model of the sizes and class names in config.json's text, provided that the file of weights is
   large enough to hold it: before that no memory is taken. A block has 12 d^2 numbers, each colour,
   position and class d, and a number two bytes or more. */
static int model_promised(Model *m, const char *json, const char *path, Size n_class,
                          const Safetensors *weights) {
    Config c;
    char text[24];
    if (config_load(&c, json, path)) return -1;
    c.n_class = n_class;
    Size rows = 12 * c.n_layer * c.n_embd + c.n_vocab + positions(&c) + n_class;
    if (rows * c.n_embd * 2 > weights->size)
        return fail("%s: too small for the model that its config promises", weights->path);
    if (model_init(m, c)) return -1;
    for (const char *id = json_first(json_get(json, "id2label")); id; id = json_next(id)) {
        long k = json_text(id, text, sizeof text) ? -1 : strtol(text, NULL, 10);
        if (k < 0 || k >= n_class) continue;
        json_text(json_value(id), m->class_names[k], sizeof(ClassName));
        text_clean(m->class_names[k]);
    }
    return 0;
}

static int palette_load(Model *m, const char *path) {
    Size K;
    free(m->palette);
    m->palette = palette_read(path, &K);
    if (m->palette && K != m->config.n_vocab)
        return fail("%s: clusters has %lld colours, config.json expects %lld", path, K,
                    m->config.n_vocab);
    return m->palette ? 0 : -1;
}

static const char STATE[] = "train_state.safetensors"; // of the run that makes the model

/* 0: this file of a model is there; else -1, what is there instead, and what to do about it. */
static int model_lacks(const char *dir, const char *name) {
    static const char *const others[] = {"model.safetensors.index.json", "pytorch_model.bin",
                                         "pytorch_model.bin.index.json"};
    if (path_kind(file_in(dir, name)) != NOTHING) return 0;
    if (errno == EACCES) return fail("%s: %s", file_in(dir, name), strerror(errno));
    if (folder_lacks(dir,
                     "`igpt train` makes a model, data/emoji-ar is one, and how to save one of "
                     "Hugging Face's hub into a folder is in the README"))
        return -1;
    const char *other = found_in(dir, others, 3);
    if (other)
        return fail("%s holds %s, not one model.safetensors; to convert it, in that folder: "
                    "python -c \"import transformers as t; t.ImageGPTForCausalImageModeling."
                    "from_pretrained('.').save_pretrained('.', max_shard_size='99GB')\"",
                    dir, other);
    if (path_kind(file_in(dir, STATE)) != NOTHING)
        return fail("%s holds a run whose save was cut off: train or finetune --resume goes on",
                    dir);
    return fail("%s is not there: no model lies in that folder; `igpt train` makes one",
                file_in(dir, name));
}

int model_load(Model *m, const char *dir) {
    Safetensors weights = {.file = NULL};
    Stored score;
    *m = (Model){.n_tensors = 0};
    if (model_lacks(dir, "config.json") || model_lacks(dir, "model.safetensors")) return -1;
    char *json = json_read(file_in(dir, "config.json"), JSON_BYTES);
    int bad = !json || safetensors_open(&weights, file_in(dir, "model.safetensors"));
    int has_score = !bad && safetensors_find(&weights, "score.weight", &score) && score.n_dim;
    Size n_class = has_score ? min(score.shape[0], NO_LABEL) : 0;
    bad = bad || model_promised(m, json, file_in(dir, "config.json"), n_class, &weights) ||
          weights_load(m, &weights) || palette_load(m, file_in(dir, "preprocessor_config.json"));
    safetensors_close(&weights);
    free(json);
    if (bad) model_free(m);
    return bad ? -1 : 0;
}

/* ==== 12 pictures ===============================================================================
   What a person looks at: PNG sheets, the terminal, SVG charts. A PNG without compression is a few
   headers, two checksums and the pixels; every viewer opens it. */

static uint32_t crc32_add(uint32_t crc, const void *data, Size n) {
    const uint8_t *p = data;
    for (Size i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return crc;
}

static void png_chunk(FILE *f, const char *type, const uint8_t *data, Size n) {
    uint8_t word[4];
    put_int(word, (uint64_t)n, 4, BIG);
    fwrite(word, 1, 4, f);
    fwrite(type, 1, 4, f);
    fwrite(data, 1, n, f);
    put_int(word, ~crc32_add(crc32_add(~0u, type, 4), data, n), 4, BIG);
    fwrite(word, 1, 4, f);
}

/* Number the colours of n pixels in the order in which they appear; returns how many there are, or
   257 for more than 256. */
static int count_colours(uint8_t colours[3 * 256], uint8_t *index, const uint8_t *rgb, Size n) {
    int count = 0, k = 0;
    for (Size i = 0; i < n; i++, rgb += 3) {
        if (k == count || memcmp(colours + 3 * k, rgb, 3)) // most are like the last
            for (k = 0; k < count && memcmp(colours + 3 * k, rgb, 3);) k++;
        if (k == 256) return 257;
        if (k == count) memcpy(colours + 3 * count++, rgb, 3);
        index[i] = (uint8_t)k;
    }
    return count;
}

/* The pixels, rows of them one behind the other: a zlib stream of blocks that are stored, not
   compressed, each in a chunk of its own. */
static void png_pixels(FILE *f, const uint8_t *pixels, Size row, Size height) {
    enum { MOST = BLOCK_OF(8192, 3) };            // bytes in a block, which could have 65535
    uint8_t chunk[2 + 5 + MOST + 4] = "\x78\x01"; // deflate, window of 32 KiB
    Size size = height * (row + 1), used = 2;
    uint64_t low = 1, high = 0; // Adler-32
    for (Size i = 0; i < size; used = 0) {
        Size end = min(size, i + MOST);
        chunk[used] = end == size; // the last one says so
        put_int(chunk + used + 1, (uint64_t)(end - i), 2, LITTLE);
        put_int(chunk + used + 3, ~(uint64_t)(end - i), 2, LITTLE);
        for (used += 5; i < end; i++) {
            chunk[used] = i % (row + 1) ? *pixels++ : 0; // before each row its filter, 0: none
            low = (low + chunk[used++]) % 65521;
            high = (high + low) % 65521;
        }
        put_int(chunk + used, high << 16 | low, 4, BIG);
        png_chunk(f, "IDAT", chunk, end == size ? used + 4 : used);
    }
}

int png_write(const char *path, const uint8_t *rgb, Size width, Size height) {
    uint8_t colours[3 * 256], head[13] = {0}, *index = zalloc(width * height, 1);
    FILE *f = index ? file_open(path, "wb") : NULL;
    if (f) {
        int n_colours = count_colours(colours, index, rgb, width * height);
        put_int(head, (uint64_t)width, 4, BIG);
        put_int(head + 4, (uint64_t)height, 4, BIG);
        head[8] = 8;                       // bits a channel
        head[9] = n_colours > 256 ? 2 : 3; // RGB, or numbers of colours
        fwrite("\x89PNG\r\n\x1a\n", 1, 8, f);
        png_chunk(f, "IHDR", head, sizeof head);
        if (n_colours <= 256) png_chunk(f, "PLTE", colours, 3 * n_colours);
        if (n_colours <= 256) png_pixels(f, index, width, height);
        else png_pixels(f, rgb, 3 * width, height);
        png_chunk(f, "IEND", head, 0);
    }
    free(index);
    return f ? file_finish(f, path, 0) : -1;
}

enum { GROUND = 0xe8 };      // the grey that sheets lie on
enum { CELL = 96, GAP = 4 }; // each picture is about so wide there, so far apart

int sheet_write(const char *path, const uint8_t *rgb, Size n, Size px, Size columns) {
    Size zoom = px < CELL ? CELL / px : 1, side = px * zoom + GAP;
    Size width = columns * side + GAP, height = ceil_div(n, columns) * side + GAP;
    uint8_t *sheet = zalloc(width * height, 3);
    if (!sheet) return -1;
    memset(sheet, GROUND, width * height * 3);
    for (Size i = 0; i < n; i++, rgb += 3 * px * px) {
        uint8_t *corner =
            sheet + 3 * ((i / columns * side + GAP) * width + i % columns * side + GAP);
        for (Size y = 0; y < px * zoom; y++)
            for (Size x = 0; x < px * zoom; x++)
                memcpy(corner + 3 * (y * width + x), rgb + 3 * (y / zoom * px + x / zoom), 3);
    }
    int bad = png_write(path, sheet, width, height);
    free(sheet);
    return bad;
}

void terminal_rows(FILE *f, const uint8_t *rgb, Size n, Size px, Size row) {
    for (Size i = 0; i < n; i++) {
        const uint8_t *pixel = rgb + 3 * (i * px + row) * px;
        for (Size x = 0; x < px; x++, pixel += 3) {
            for (Size half = 0; half < min(2, px - row); half++) {
                const uint8_t *c = pixel + 3 * half * px; // 38: of the character, 48: its ground
                fprintf(f, "\033[%d;2;%d;%d;%dm", half ? 48 : 38, c[0], c[1], c[2]);
            }
            fputs("\xe2\x96\x80", f); // U+2580, upper half block
        }
        fputs(i + 1 < n ? "\033[0m " : "\033[0m\n", f);
    }
}

/* Charts. An axis: its range, widened to whole ticks, and where its ends lie in the picture. */
typedef struct {
    double low, high, step, from, to;
} Axis;

static double place(const Axis *a, double v) {
    return a->from + (v - a->low) / (a->high - a->low) * (a->to - a->from);
}

/* About five ticks, each a 1, 2 or 5 times a power of ten; whole ones between whole numbers, as
   layers and steps are. What lies lowest keeps clear of the axis below. */
static Axis axis_of(const Series *series, Size n, int vertical, double from, double to) {
    Axis a = {INFINITY, -INFINITY, 1, from, to};
    int whole = 1;
    for (const Series *s = series; s < series + n; s++)
        for (Size i = 0; i < s->n; i++) {
            double v = vertical ? s->y[i * s->step] : s->x[i * s->step];
            if (!isfinite(s->y[i * s->step])) continue;
            a.low = fmin(a.low, v);
            a.high = fmax(a.high, v);
            whole &= v == floor(v);
        }
    if (!isfinite(a.low)) a.low = 0, a.high = 1;
    double size = fmax(fabs(a.low), fabs(a.high)), margin = fmax(1, size / 100);
    if (a.high - a.low <= size * 1e-9) a.low -= margin, a.high += margin; // it is but one value
    double step = pow(10, floor(log10((a.high - a.low) / 5))), steps = (a.high - a.low) / step;
    a.step = fmax(steps > 25 ? 5 * step : steps > 10 ? 2 * step : step, whole);
    double lowest = a.low;
    a.low = floor(a.low / a.step) * a.step;
    if (vertical && lowest > 0 && lowest - a.low < a.step / 4) a.low -= a.step;
    a.high = ceil(a.high / a.step) * a.step;
    return a;
}

enum { LEFT = 70, RIGHT = 670, TOP = 64, BOTTOM = 365 }; // of the plot in the chart, 860 x 420

/* The start, middle or end of the text lies at (x, y), with a rim of white where it crosses a line.
   In a CDATA section & and < stand as such. */
static void svg_text(FILE *f, double x, double y, const char *anchor, const char *text) {
    fprintf(f,
            "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" stroke=\"#fff\" stroke-width=\"4\" "
            "paint-order=\"stroke\"><![CDATA[%s]]></text>\n",
            x, y, anchor, text);
}

static void chart_axis(FILE *f, const Axis *a, int vertical) {
    int n = (int)fmin((a->high - a->low) / a->step + 0.5, 50); // of NaN and 50 the 50
    for (int i = 0; i <= n; i++) {
        char label[32];
        double v = a->low + i * a->step, p = place(a, v);
        snprintf(label, sizeof label, "%.6g", fabs(v) < a->step / 2 ? 0 : v);
        if (vertical) {
            fprintf(f, "<path d=\"M%d %.1fH%d\" stroke=\"#ddd\"/>\n", LEFT, p, RIGHT);
            svg_text(f, LEFT - 8, p + 4, "end", label);
        } else {
            fprintf(f, "<path d=\"M%.1f %dv5\" stroke=\"#888\"/>\n", p, BOTTOM);
            svg_text(f, p, BOTTOM + 20, "middle", label);
        }
    }
}

/* Names stand at the ends of the lines, from the top down and far enough apart to be read; that of
   a single dot stands below it. */
static void chart_names(FILE *f, const Series *series, Size n, const Axis *ax, const Axis *ay) {
    double below = 0; // where the next name may stand
    for (double y = TOP; y <= BOTTOM; y++)
        for (const Series *s = series; s < series + n; s++) {
            Size last = s->n - 1;
            while (last > 0 && !isfinite(s->y[last * s->step])) last--;
            if (last < 0 || round(place(ay, s->y[last * s->step])) != y) continue;
            double x = place(ax, s->x[last * s->step]);
            if (s->n == 1) {
                svg_text(f, x, y + 26, "middle", s->name);
                continue;
            }
            below = fmax(below, y + 4);
            fprintf(f, "<g fill=\"%s\">", s->colour);
            svg_text(f, x + 12, below, "start", s->name);
            fputs("</g>", f);
            below += 17;
        }
}

int chart_write(const char *path, const char *title, const char *x_name, const char *y_name,
                const Series *series, Size n) {
    Axis ax = axis_of(series, n, 0, LEFT, RIGHT), ay = axis_of(series, n, 1, BOTTOM, TOP);
    FILE *f = file_open(path, "wb");
    if (!f) return -1;
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"420\" "
            "font-family=\"sans-serif\" font-size=\"13\" fill=\"#333\">\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
            "<text x=\"70\" y=\"24\" font-size=\"16\" font-weight=\"bold\"><![CDATA[%s]]></text>\n",
            title);
    chart_axis(f, &ax, 0);
    chart_axis(f, &ay, 1);
    svg_text(f, RIGHT, BOTTOM + 42, "end", x_name);
    svg_text(f, LEFT, TOP - 14, "middle", y_name);
    for (const Series *s = series; s < series + n; s++) {
        fprintf(f, "<g stroke=\"%s\" fill=\"none\"><polyline stroke-width=\"1.8\" points=\"",
                s->colour);
        for (Size i = 0; i < s->n * s->step; i += s->step)
            if (isfinite(s->y[i]))
                fprintf(f, "%.1f,%.1f ", place(&ax, s->x[i]), place(&ay, s->y[i]));
        fputs("\"/></g>\n", f);
        for (Size i = 0; i < s->n * s->step && s->dots; i += s->step)
            if (isfinite(s->y[i]))
                fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%d\" fill=\"%s\"/>\n",
                        place(&ax, s->x[i]), place(&ay, s->y[i]), s->dots, s->colour);
    }
    chart_names(f, series, n, &ax, &ay);
    fputs("</svg>\n", f);
    return file_finish(f, path, 0);
}

/* ==== 13 options ================================================================================
   Here begins the third part, the program. Results go to stdout as lines of `name value`,
   everything else to stderr. The idea to take away: everything that sets options is a command line.
   A preset is one, and so is what a run keeps for --resume; all are read by the same function, the
   strongest first: what one has set the next leaves alone. */

#ifndef IGPT_NO_MAIN

/* The console: notes, pictures and one moving progress line, all on stderr. */
static struct {
    int quiet, terminal, show, pending;
    double last, began; // seconds: of the last progress line, of the work that it is about
    const char *where;  // the folder that a run has entered; NULL: none
} console;

static void progress_clear(void) {
    if (console.pending) fputs("\r\033[K", stderr);
    console.pending = 0;
}

/* A NOTE is a line that stays. PROGRESS on a terminal is one line, written over itself ten times a
   second and no wider than the terminal; elsewhere a line every ten seconds. */
enum { NOTE, PROGRESS };

static void say(int kind, const char *format, ...) {
    char line[2 * PATH_SIZE];
    double now = seconds_now(), pause = kind == NOTE ? 0 : console.terminal ? 0.1 : 10;
    va_list args;
    if (console.quiet || now - console.last < pause) return;
    if (kind == PROGRESS) console.last = now;
    progress_clear();
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    text_clean(line);
    console.pending = kind == PROGRESS && console.terminal;
    if (console.pending) fprintf(stderr, "%.*s", terminal_columns() - 1, line);
    else fprintf(stderr, "%s\n", line);
    fflush(stderr);
}

static const char *clock_text(double seconds) { // hours:minutes:seconds
    static char text[32];
    Size s = llround(seconds);
    snprintf(text, sizeof text, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    return text;
}

/* How far a piece of work is, and the time that the rest will take if it goes on like this. Called
   with nothing done when the work begins. */
static void progress(const char *work, Size done, Size n) {
    double now = seconds_now(), share = (double)done / (double)n;
    if (!done) console.began = now;
    else
        say(PROGRESS, "%s: %.0f %%, %s left", work, 100 * share,
            clock_text((now - console.began) * (1 - share) / share));
}

static int takes_colour(void) {
    const char *is = getenv("COLORTERM");
    const char *no = getenv("NO_COLOR"); // says no-color.org: set, and not empty
    return console.terminal && !(no && *no) && is &&
           (!strcmp(is, "truecolor") || !strcmp(is, "24bit"));
}

/* All that a run writes; the first three show that a run or a model is there. */
enum { MODEL_FILES = 3 };
static const char *const run_files[] = {
    STATE,     "config.json", "model.safetensors", "preprocessor_config.json",
    "log.csv", "samples.png", "progress.png",      "loss.svg",
    NULL};

/* End the command with a sentence for the person. */
PRINTF_LIKE static _Noreturn void stop(const char *format, ...) {
    char text[sizeof last_error];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fail("%s%s%s", console.where ? console.where : "", console.where ? ": " : "", text);
    fprintf(stderr, "%sigpt: %s\n", console.pending ? "\n" : "", error_text());
    exit(1);
}

/* What the library answers with -1 and a sentence ends the command. */
static void need(int holds) {
    if (!holds) stop("%s", error_text());
}

static void *need_memory(Size count, Size size) { // until the command ends
    void *p = zalloc(count, size);
    need(p != NULL);
    return p;
}

typedef struct Options Options;

typedef struct {
    const char *name, *summary;
    const char *defaults; // a command line: where they differ from the table's
    unsigned bit;
    void (*run)(Options *);
} Command;

struct Options {
    const Command *command;
    char **words; // the command line behind the command's name
    int n_words;
    const char *data, *model, *out, *init, *palette, *features;
    Config config; // of the model, but for the classes
    Size seed, threads, quiet, preset, pool;
    Size batch, micro_batch, steps, warmup, eval_every, save_every, shift; // -1: to be found
    Size resume, overwrite, recompute, from_scratch, labels_per_class, masks;
    Size flip, n, top_k, rows, show, f16, concat, n_images;
    double lr, mask_prob, gen_weight, temperature;
    char **image;
    unsigned char source[64]; // of each option's value
};

enum { TRAIN = 1, SAMPLE = 2, EVAL = 4, INFO = 8, FINETUNE = 16, PALETTE = 32, PROBE = 64 };
enum { COMPLETE = 128, ALL = 255, DRAWS = TRAIN | SAMPLE | COMPLETE, WRITES = ALL - EVAL - INFO };
enum { RUNS = TRAIN | FINETUNE, SIZES = TRAIN | INFO, TESTS = FINETUNE | PROBE | EVAL };
enum { HERE = 256 }; // of this call alone: a resumed run does not take it over
enum { MANY = INT_MAX / 2 };

/* What stands behind an option tells its type: "" is a flag, N a whole number, X any number, a|b
   one of these words, of which Options has the number; all else is a path. */
typedef struct {
    const char *name, *value;
    size_t where;        // in Options
    unsigned commands;   // that take it
    const char *initial; // its default; "": none, or to be found
    double low, high;    // of a number
    const char *help;
} Option;

/* One table describes every option: parsing, defaults, ranges, help and suggestions read it. */
// clang-format off
#    define AT(field) offsetof(Options, field)
static const Option option_table[] = {
    {"data", "DIR", AT(data), ALL - SAMPLE - INFO, "data/emoji", 0, 0, "the pictures"},
    {"model", "DIR", AT(model), SAMPLE | COMPLETE | TESTS | HERE, "out", 0, 0, "a model's folder"},
    {"model", "DIR", AT(model), INFO, "", 0, 0, "a model's folder, instead of a preset"},
    {"out", "DIR", AT(out), WRITES | HERE, "out", 0, 0, "where to write"},
    {"seed", "N", AT(seed), WRITES, "1", 0, INT_MAX, "of all random numbers"},
    {"threads", "N", AT(threads), ALL | HERE, "0", 0, 1024, "0: OMP_NUM_THREADS, or all cores"},
    {"quiet", "", AT(quiet), ALL | HERE, "", 0, 0, "no progress on stderr"},
    {"preset", "tiny|igpt-s|igpt-m|igpt-l|igpt-xl", AT(preset), SIZES | PALETTE, "tiny", 0, 0,
     "sets what is not given"},
    {"n-layer", "N", AT(config.n_layer), SIZES, "4", 1, 1024, "layers"},
    {"n-head", "N", AT(config.n_head), SIZES, "2", 1, 1024, "attention heads"},
    {"n-embd", "N", AT(config.n_embd), SIZES, "64", 1, 16384, "width of the network"},
    {"n-px", "N", AT(config.n_px), SIZES | PALETTE, "16", 1, 256, "side of the pictures in pixels"},
    {"n-vocab", "N", AT(config.n_vocab), SIZES | PALETTE, "64", 2, 65535, "colours in the palette"},
    {"objective", "ar|bert", AT(config.objective), SIZES, "ar", 0, 0,
     "predict next or masked pixels"},
    {"mask-prob", "X", AT(mask_prob), TRAIN | TESTS, "0.15", 1e-3, 1, "bert: share that is masked"},
    {"masks", "N", AT(masks), TESTS, "5", 1, 10000, "bert: random masks that a test averages over"},
    {"gen-weight", "X", AT(gen_weight), FINETUNE, "1", 0, 1e6, "of L_GEN; 0: L_CLF alone"},
    {"labels-per-class", "N", AT(labels_per_class), FINETUNE | PROBE, "0", 0, INT_MAX,
     "pictures to learn from (probe: 5 draws); 0: all"},
    {"from-scratch", "", AT(from_scratch), FINETUNE, "", 0, 0, "fresh weights, for comparison"},
    {"batch", "N", AT(batch), RUNS | INFO, "16", 1, 65536, "images in a step"},
    {"micro-batch", "N", AT(micro_batch), RUNS | INFO, "", 1, 65536,
     "images in a pass; default the preset's, or about 50 MB"},
    {"recompute", "", AT(recompute), RUNS | INFO, "", 0, 0, "less memory: runs each block twice"},
    {"steps", "N", AT(steps), RUNS, "3200", 1, MANY, "steps of Adam"},
    {"lr", "X", AT(lr), RUNS, "0.004", 1e-9, 1, "peak learning rate"},
    {"warmup", "N", AT(warmup), RUNS, "", 0, MANY,
     "steps until the peak; default an epoch, at most half"},
    {"eval-every", "N", AT(eval_every), RUNS, "", 1, MANY, "steps between tests; default a tenth"},
    {"save-every", "N", AT(save_every), RUNS, "", 1, MANY, "between saves; default eval-every"},
    {"flip", "0|1", AT(flip), RUNS, "1", 0, 0, "mirror half of the pictures; 0: letters, digits"},
    {"shift", "N", AT(shift), RUNS, "", 0, 255,
     "move by up to N pixels; default 0, finetune n-px / 8"},
    {"resume", "", AT(resume), RUNS | HERE, "", 0, 0, "go on with the run in --out, bit for bit"},
    {"overwrite", "", AT(overwrite), RUNS | HERE, "", 0, 0, "where --out holds a run: start anew"},
    {"init", "DIR", AT(init), TRAIN | HERE, "", 0, 0, "start from this model and its palette"},
    {"palette", "FILE", AT(palette), TRAIN | PALETTE | HERE, "", 0, 0,
     "colours of this preprocessor_config.json, not k-means"},
    {"pool", "mean|none", AT(pool), PROBE, "mean", 0, 0, "features: mean over positions, or all"},
    {"concat", "N", AT(concat), PROBE, "1", 1, 1025, "also join N layers around the best one"},
    {"features", "FILE", AT(features), PROBE, "", 0, 0, "write features and labels as safetensors"},
    {"f16", "", AT(f16), RUNS, "", 0, 0, "write the weights as F16, in half the space"},
    {"n", "N", AT(n), SAMPLE | COMPLETE, "40", 1, 100000, "pictures, or completions of each"},
    {"image", "FILE ...", AT(image), COMPLETE, "", 0, 0, "PPM or PGM; default: 8 test pictures"},
    {"rows", "N", AT(rows), COMPLETE, "", 0, 256, "rows that are given; default half"},
    {"temperature", "X", AT(temperature), DRAWS, "1", 0.01, 100, "above 1 wilder, below tamer"},
    {"top-k", "N", AT(top_k), DRAWS, "0", 0, 65535, "draw from the N likeliest colours; 0: all"},
    {"show", "0|1", AT(show), DRAWS | HERE, "", 0, 0, "draw in the terminal; default by COLORTERM"},
};
// clang-format on
enum { N_OPTIONS = sizeof option_table / sizeof *option_table };

/* In the order of --preset's words, with a name for the reader. The table's defaults are tiny's. */
static const char *const presets[] = {
    "tiny: the defaults above, --micro-batch 4",
    "igpt-s: --n-layer 24 --n-embd 512 --n-head 8 --n-px 32 --n-vocab 512\n"
    "          --batch 128 --micro-batch 4 --steps 1000000 --lr 0.003",
    "igpt-m: --n-layer 36 --n-embd 1024 --n-head 8 --n-px 32 --n-vocab 512\n"
    "          --batch 128 --micro-batch 2 --steps 1000000 --lr 0.003",
    "igpt-l: --n-layer 48 --n-embd 1536 --n-head 16 --n-px 32 --n-vocab 512\n"
    "          --batch 128 --micro-batch 1 --steps 1000000 --lr 0.001",
    "igpt-xl: --n-layer 60 --n-embd 3072 --n-head 16 --n-px 64 --n-vocab 512\n"
    "          --batch 64 --micro-batch 1 --steps 2000000 --lr 0.0003",
};
enum { N_PRESETS = sizeof presets / sizeof *presets };

/* The number of a word in "a|b|c"; -1 where it is none of them. */
static Size word_number(const char *words, const char *word) {
    for (Size k = 0;; k++) {
        size_t length = strcspn(words, "|");
        if (length == strlen(word) && !memcmp(words, word, length)) return k;
        if (!words[length]) return -1;
        words += length + 1;
    }
}

/* Give an option its value; -1 and a sentence for one that does not fit. */
static int option_set(Options *o, const Option *option, const char *value) {
    void *field = (char *)o + option->where;
    const char *name = option->name, *type = option->value;
    if (!*type) { // a flag
        *(Size *)field = 1;
    } else if (strchr(type, '|')) {
        *(Size *)field = word_number(type, value);
        if (*(Size *)field < 0) return fail("--%s takes %s, not \"%s\"", name, type, value);
    } else if (*type == 'N' || *type == 'X') {
        char *end;
        double number = strtod(value, &end);
        int whole = *type == 'N', fits = number >= option->low && number <= option->high;
        if (end == value || *end || !fits || (whole && number != floor(number)))
            return fail("--%s takes a %s from %.10g to %.10g, not \"%s\"", name,
                        whole ? "whole number" : "number", option->low, option->high, value);
        if (whole) *(Size *)field = (Size)number;
        else *(double *)field = number;
    } else {
        if (!*value || strlen(value) > PATH_SIZE / 2 || strchr(value, '\n'))
            return fail("--%s takes a path: not empty, not too long, on one line", name);
        *(const char **)field = value;
    }
    return 0;
}

enum { MOST_LETTERS = 3 }; // wrong in a word for which another one is suggested

/* Whether two words are at most so many letters apart, each added, left out or changed. */
static int is_near(const char *a, const char *b, int letters) {
    for (; *a && *a == *b; a++) b++;
    if (!*a && !*b) return 1;
    if (letters == 0) return 0;
    return (*a && is_near(a + 1, b, letters - 1)) || (*b && is_near(a, b + 1, letters - 1)) ||
           (*a && *b && is_near(a + 1, b + 1, letters - 1));
}

/* The command's option of this name; NULL and a sentence, with a suggestion if one is close. */
static const Option *option_find(const Command *command, const char *name) {
    for (int letters = 0; letters <= MOST_LETTERS; letters++)
        for (const Option *option = option_table; option < option_table + N_OPTIONS; option++) {
            if (!(option->commands & command->bit)) continue;
            if (!is_near(name, option->name, letters)) continue;
            if (letters == 0) return option;
            fail("%s has no option --%s; did you mean --%s?", command->name, name, option->name);
            return NULL;
        }
    return fail("%s has no option --%s", command->name, name), NULL;
}

static int is_option(const char *word) { return !strncmp(word, "--", 2); }

/* What a run keeps for --resume, a line each: what is saved already, and the words of this command
   line, but for options of this call alone. They have been read without a mistake. */
static char *words_keep(const char *saved, const Options *o) {
    Size bytes = strlen(saved) + 1;
    for (int i = 0; i < o->n_words; i++) bytes += strlen(o->words[i]) + 1;
    char *text = strcpy(need_memory(bytes, 1), saved);
    unsigned here = 0;
    for (int i = 0; i < o->n_words; i++) {
        const char *word = o->words[i];
        if (is_option(word)) here = option_find(o->command, word + 2)->commands & HERE;
        if (!here) strcat(strcat(text, word), "\n");
    }
    return text;
}

/* Where values come from, the weakest source first: the table, the command's own defaults, a
   preset, what a run that is resumed was started with, and a person. */
enum { TABLE, DEFAULTS, PRESET, SAVED, TYPED };

/* The strongest source is read first: what it has set stays. Passed over are options of a preset
   that the command has not, and of a saved run those of one call alone. */
static int options_read(Options *o, char **words, int n, int source) {
    if (n && !is_option(*words)) return fail("%s is no option: those start with --", *words);
    for (int i = 0, next; i < n; i = next) {
        const Option *option = option_find(o->command, words[i] + 2);
        for (next = i + 1; next < n && !is_option(words[next]);) next++;
        if (!option && source == PRESET) continue;
        if (!option) return -1;
        int n_values = next - i - 1, is_list = option->where == AT(image);
        if (n_values != (*option->value != 0) && !(is_list && n_values))
            return fail("%s has %d values; it is used so: %s %s", words[i], n_values, words[i],
                        option->value);
        unsigned char *set_by = &o->source[option - option_table];
        if (*set_by > source || (source == SAVED && option->commands & HERE)) continue;
        *set_by = (unsigned char)source;
        if (is_list) o->image = words + i + 1, o->n_images = n_values;
        else if (option_set(o, option, words[i + 1])) return -1;
    }
    return 0;
}

/* The same from a text, of which a copy stays in memory until the command ends. */
static int text_read(Options *o, const char *text, const char *separator, int source) {
    char *copy = strcpy(need_memory(strlen(text) + 1, 1), text);
    char **words = need_memory(strlen(text) / 2 + 1, sizeof *words); // as many as there can be
    int n = 0;
    for (char *word = strtok(copy, separator); word; word = strtok(NULL, separator))
        words[n++] = word;
    return options_read(o, words, n, source);
}

/* Everything that sets options; `saved` is what a run that is resumed was started with, or "". */
static int options_all(Options *o, const Command *command, char **words, int n, const char *saved) {
    *o = (Options){.command = command, .words = words, .n_words = n};
    o->micro_batch = o->warmup = o->eval_every = o->save_every = -1;
    o->shift = o->rows = o->show = -1;
    if (options_read(o, words, n, TYPED) || text_read(o, saved, "\n", SAVED)) return -1;
    if (option_find(command, "preset"))
        text_read(o, strstr(presets[o->preset], "--"), " \n", PRESET);
    text_read(o, command->defaults, " ", DEFAULTS);
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *option = &option_table[i];
        if (option->commands & command->bit && *option->initial && o->source[i] == TABLE)
            option_set(o, option, option->initial);
    }
    o->micro_batch = min(o->micro_batch, o->batch);
    return 0;
}

static int is_given(const Options *o, const char *name) {
    const Option *option = option_find(o->command, name);
    return option && o->source[option - option_table] == TYPED;
}

/* Options about masks would do nothing to a model trained by L_AR. */
static void need_masks(const Options *o, const Config *c) {
    if (!is_masked(c) && (is_given(o, "mask-prob") || is_given(o, "masks")))
        stop("--mask-prob and --masks are for models trained with --objective bert");
}

/* The options that say what a model is, from a model that is there: those typed must not change. */
static void options_follow(Options *o, const Config *c, const char *dir) {
    const Options given = *o;
    o->config = *c;
    for (int i = 0; i < N_OPTIONS; i++) {
        size_t where = option_table[i].where;
        int agree = !memcmp((char *)o + where, (const char *)&given + where, sizeof(Size));
        if (o->source[i] == TYPED && !agree)
            stop("the model in %s has another --%s: leave it out", dir, option_table[i].name);
    }
}

static void help_command(const Command *command) {
    printf("igpt %s - %s\n\n", command->name, command->summary);
    for (const Option *o = option_table; o < option_table + N_OPTIONS; o++) {
        char word[64], usage[64];
        if (!(o->commands & command->bit)) continue;
        snprintf(word, sizeof word, "--%s ", o->name);
        snprintf(usage, sizeof usage, "--%s %s", o->name, o->value);
        const char *own = strstr(command->defaults, word); // the command's, else the table's
        own = own ? own + strlen(word) : o->initial;
        printf(*own ? "  %-20s %s (%.*s)\n" : "  %-20s %s\n", usage, o->help,
               (int)strcspn(own, " "), own);
    }
    if (!option_find(command, "preset")) return;
    puts("\nPresets:");
    for (int i = 0; i < N_PRESETS; i++) printf("  %s\n", presets[i]);
}

/* What would fail after the work is to fail before it: can this file be written? */
static void need_output(const char *path) {
    FILE *f = file_open(path, "wb");
    need(f != NULL);
    int bad = fclose(f), reason = errno;
    file_remove(hidden(path));
    if (bad) stop("cannot write %s: %s", path, strerror(reason));
}

/* The same of these files, up to NULL, in a folder that is made where it is missing. */
static void need_outputs(const char *dir, const char *const *names) {
    need(!folder_make(dir));
    while (*names) need_output(file_in(dir, *names++));
}

/* ==== 14 training ===============================================================================
   train, finetune and --resume (paper, 3.4; unlike there, fine-tuning follows the cosine, too, and
   pre-training mirrors pictures). The idea to take away: a step is a function of the weights,
   Adam's moments and the step's number, since random numbers have no state; so a run that is saved
   after any step goes on as if it had never been stopped. */

enum { TRAIN_SAMPLES = 40, SAMPLE_BATCH = 32, SHEET_COLUMNS = 8, SHEET_LINES = 20, LOG_ROWS = 200 };
enum { PROCESS_BYTES = 4000000, HISTOGRAM_BYTES = ALL_COLOURS * sizeof(uint32_t) };

/* How many pictures, `most` or fewer, can be drawn at once with a cache of at most `bytes`. */
static Size sampler_images(const Config *c, Size most, double bytes) {
    double fit =
        bytes / (double)(activations_bytes(c, 2, KEEP_PAST) - activations_bytes(c, 1, KEEP_PAST));
    return fit > (double)most ? most : fit > 1 ? (Size)fit : 1;
}

/* The bytes of all blocks' weights. */
static double block_bytes(const Config *c) {
    return 12.0 * (double)(c->n_layer * c->n_embd * c->n_embd) * sizeof(real);
}

/* A small model's products are too short to be shared out among threads. */
static int is_small(const Config *c) { return block_bytes(c) < 8e6; }

/* How many are drawn at once. Large models gain by it, since each of their weights is read once for
   all pictures; others lose, whose weights stay in caches if keys and values do not drive them out.
   But with a small model no thread should be without a picture. */
static Size sample_batch(const Config *c) {
    Size fit = sampler_images(c, SAMPLE_BATCH, block_bytes(c) > 3e7 ? 4e9 : 8e6);
    return is_small(c) && fit < threads_get() ? min(threads_get(), SAMPLE_BATCH) : fit;
}

/* How many pictures a run draws whenever it is tested: few of a large model, whose cache and time
   would hold training up. */
static Size train_samples(const Options *o) {
    int draws = o->command->bit != FINETUNE && !is_masked(&o->config);
    return draws ? sampler_images(&o->config, TRAIN_SAMPLES, 256e6) : 0;
}

/* A line of a sheet of completions: `rows` of the original, the rest in grey; n pictures that were
   drawn; the original. */
static void completions_line(uint8_t *rgb, const Model *m, const uint16_t *original, Size rows,
                             const uint16_t *drawn, Size n) {
    enum { GREY = 128 };
    Size px = m->config.n_px, T = px * px;
    memset(rgb, GREY, 3 * T);
    palette_colours(rgb, original, rows * px, m->palette);
    palette_colours(rgb + 3 * T, drawn, n * T, m->palette);
    palette_colours(rgb + 3 * (n + 1) * T, original, T, m->palette);
}

/* Draw n pictures, several at a time; each thread some of its own where the model is small. For
   those who wait: how far it is, and the first pictures, as many as fit side by side, growing by a
   line of characters, which is two rows of pixels. Where they complete originals, the pictures of
   each are drawn at a time and shown between what is given and the original. */
static void draw_pictures(const Options *o, const Model *m, uint16_t *tokens, Size n, Size rows,
                          const uint16_t *originals) {
    Size px = m->config.n_px, T = px * px, across = (terminal_columns() + 1) / (px + 1);
    int lines = originals && console.show && across > 2 && o->n <= SAMPLE_BATCH;
    Size B = lines ? o->n : min(n, sample_batch(&m->config));
    Size beside = lines ? 2 : 0, shown = min(B, across - beside);
    int threads = threads_get(), n_samplers = is_small(&m->config) ? (int)min(threads, B) : 1;
    Activations *samplers[SAMPLE_BATCH]; // B of them at most
    uint8_t *rgb = need_memory((shown + beside) * T, 3);
    if (n_samplers > 1) threads_set(1);
    for (int k = 0; k < n_samplers; k++) {
        samplers[k] = activations_new(&m->config, ceil_div(B, n_samplers), KEEP_PAST);
        need(samplers[k] != NULL);
    }
    for (Size i = 0; i < n && !interrupted; i += B, tokens += B * T) {
        Drawing drawing = {o->seed, i, o->temperature, o->top_k};
        Size count = min(B, n - i), share = ceil_div(count, n_samplers), row = 0;
        int visible = console.show && shown > 0 && (i == 0 || lines);
        for (; row < px && !interrupted; row += 2) {
            Size t = row * px, end = min(t + 2 * px, T);
            progress("drawing", i * px + count * row, n * px);
            if (n_samplers > 1) {
#    pragma omp parallel for num_threads(n_samplers) schedule(static) ordered
                for (Size b = 0; b < count; b += share) {
                    Drawing own = drawing;
                    own.first += b;
                    threads_set(1); // OMP_NUM_THREADS can ask for more within
                    int bad = sample_positions(m, samplers[b / share], tokens + b * T,
                                               min(share, count - b), t, end, rows * px, &own);
#    pragma omp ordered
                    need(!bad); // of several pictures that fail, the first says why
                }
            } else // not within a region of one thread, where each inner one would start its own
                need(!sample_positions(m, *samplers, tokens, count, t, end, rows * px, &drawing));
            if (!visible) continue;
            progress_clear();
            if (lines) completions_line(rgb, m, originals + i / B * T, rows, tokens, shown);
            else palette_colours(rgb, tokens, shown * T, m->palette);
            terminal_rows(stderr, rgb, shown + beside, px, row);
        }
        if (visible) fputc('\n', stderr);
    }
    threads_set(threads);
    for (int k = 0; k < n_samplers; k++) free(samplers[k]);
    free(rgb);
}

/* Draw pictures and tell how fast; before, find out whether there is the memory for the sheet
   and for a byte more of each pixel, which its PNG takes. */
static void draw_and_time(const Options *o, const Model *m, uint16_t *tokens, Size n, Size rows,
                          const uint16_t *originals) {
    const Config *c = &m->config;
    Size side = (c->n_px < CELL ? CELL : c->n_px) + GAP, cells = originals ? n + 2 * n / o->n : n;
    free(need_memory(cells * side * side, 3 + 1));
    double began = seconds_now();
    draw_pictures(o, m, tokens, n, rows, originals);
    double seconds = seconds_now() - began;
    say(NOTE, "%lld picture%s in %.1f s", n, n == 1 ? "" : "s", seconds);
    printf("pictures_per_second %.2f\n", (double)n / seconds);
}

static void write_sheet(const char *path, const uint16_t *tokens, Size n, Size px,
                        const real *palette, Size columns) {
    uint8_t *rgb = need_memory(n * px * px, 3);
    palette_colours(rgb, tokens, n * px * px, palette);
    need(!sheet_write(path, rgb, n, px, columns));
    free(rgb);
}

/* Memory for passes of at most B pictures, and what goes through the network. */
typedef struct {
    Activations *acts;
    Batch batch; // of these three:
    uint16_t *tokens, *labels;
    uint8_t *mask;
} Pass;

static Pass pass_open(const Config *c, Size B, int keep) {
    Size T = positions(c);
    Pass p = {.tokens = need_memory(B * T, sizeof *p.tokens),
              .labels = need_memory(B, sizeof *p.labels),
              .mask = need_memory(B * T, sizeof *p.mask)};
    need((p.acts = activations_new(c, B, keep)) != NULL);
    p.batch = (Batch){B, p.tokens, is_masked(c) ? p.mask : NULL, p.labels};
    return p;
}

/* Put pictures index[0..n) of a set into a pass. */
static void pass_fill(Pass *p, const Images *set, const Size *index, Size n) {
    Size T = set->px * set->px;
    p->batch.B = n;
    for (Size b = 0; b < n; b++) {
        memcpy(p->tokens + b * T, set->tokens + index[b] * T, T * sizeof *p->tokens);
        p->labels[b] = set->labels[index[b]];
    }
}

/* Masks for a BERT model: draw k of the pictures that are numbered from `first` on. */
static void pass_mask(Pass *p, Size T, double probability, uint64_t seed, uint64_t first) {
    for (Size b = 0; b < p->batch.B && p->batch.mask; b++)
        bert_mask(p->mask + b * T, T, probability, seed, first + (uint64_t)b);
}

/* What a model scores on a set: L_GEN in nats per position; L_CLF in nats per picture and the share
   of pictures whose class was right, both NaN where they were not asked for. */
typedef struct {
    double gen, clf, accuracy;
} Scores;

enum { TEST_SEED = 0x7e57 }; // of the masks of tests: the same ones in every test

/* Some pictures of a set, B at a time. With `classes` also L_CLF, and then each must have a label.
   A BERT model sees each picture under `masks` masks: the mean of its losses, and of its class
   logits, counts. */
static Scores evaluate(const Model *m, Pass *pass, Size B, const Images *set, const Subset *subset,
                       int classes, Size masks, double mask_prob) {
    Size T = set->px * set->px, C = m->config.n_class, draws = is_masked(&m->config) ? masks : 1;
    real *logits = need_memory(B * C, sizeof *logits); // mean over draws
    Losses sum = {0, 0, 0};
    for (Size i = 0, n; i < subset->n && !interrupted; i += n) {
        progress("testing", i, subset->n);
        n = min(B, subset->n - i);
        pass_fill(pass, set, subset->index + i, n);
        memset(logits, 0, B * C * sizeof *logits);
        for (Size k = 0; k < draws && !interrupted; k++) {
            pass_mask(pass, T, mask_prob, TEST_SEED, (uint64_t)(k << 32 | i));
            sum.gen += objective(m, pass->acts, &pass->batch, 1, 0, NULL).gen;
            if (classes) classify(m, pass->acts, n);
            for (Size j = 0; j < n * C && classes; j++)
                logits[j] += pass->acts->classes[j] / (real)draws;
        }
        if (classes) class_losses(logits, pass->labels, n, C, 0, &sum);
    }
    progress_clear();
    free(logits);
    double n = (double)subset->n;
    return (Scores){sum.gen / (double)draws / n, classes ? sum.clf / n : NAN,
                    classes ? (double)sum.correct / n : NAN};
}

static Subset all_of(const Images *set) {
    Subset all = {set->n, need_memory(set->n, sizeof *all.index)};
    for (Size i = 0; i < set->n; i++) all.index[i] = i;
    return all;
}

/* The entropy of a set's colours, in nats: what a model scores that only counts them. */
static double unigram_nats(const Images *set, Size K) {
    Size n = set->n * set->px * set->px, *count = need_memory(K, sizeof *count);
    double nats = 0;
    for (Size i = 0; i < n; i++) count[set->tokens[i]]++;
    for (Size k = 0; k < K; k++)
        if (count[k]) nats -= (double)count[k] / (double)n * log((double)count[k] / (double)n);
    return nats;
}

/* The test accuracy of whoever always names the commonest class of the training pictures. */
static double majority_accuracy(const Dataset *data) {
    Size *count = need_memory(NO_LABEL + 1, sizeof *count), largest = 0, right = 0;
    for (Size i = 0; i < data->train.n; i++) count[data->train.labels[i]]++;
    for (Size k = 1; k < data->n_class; k++)
        if (count[k] > count[largest]) largest = k;
    for (Size i = 0; i < data->test.n; i++) right += data->test.labels[i] == largest;
    free(count);
    return (double)right / (double)data->test.n;
}

/* Hugging Face's classifiers and bare models are saved without: it is zero here. */
static int has_lm_head(const Model *m) {
    Matrix head = weights(m, LM_HEAD, 0);
    for (Size i = 0; i < head.rows * head.cols; i++)
        if (head.data[i] != 0) return 1;
    return 0;
}

/* Of a model without lm_head no L_GEN is to be seen: it would be ln K. */
static void print_scores(const Scores *s, const Dataset *data, const Model *m) {
    if (isfinite(s->gen) && has_lm_head(m))
        printf("nats_per_pixel %.5f\nbits_per_pixel %.5f\nunigram_nats %.5f\n", s->gen,
               s->gen / log(2), unigram_nats(&data->test, m->config.n_vocab));
    if (isfinite(s->clf))
        printf("class_nats %.5f\naccuracy %.4f\nmajority_accuracy %.4f\n", s->clf, s->accuracy,
               majority_accuracy(data));
}

/* Whether the model's class head is for the data's classes. */
static int classes_agree(const Model *m, const Dataset *data) {
    int same = m->config.n_class == data->n_class && data->n_class > 0;
    for (Size k = 0; k < data->n_class && same; k++)
        same = !strcmp(m->class_names[k], data->class_names[k]);
    return same;
}

/* The peak memory of training, pictures aside: the process with each thread's panels, parameters,
   gradients and two moments (for fine-tuning also the best so far), activations, the sampler's
   cache. A small model needs less than its palette did before. */
static double train_bytes(const Options *o, Size n_params) {
    const Config *c = &o->config;
    double copies = o->command->bit == FINETUNE ? 5 : 4;
    int keep = o->recompute ? KEEP_INPUTS : KEEP_ALL;
    int has_palette = o->model || o->init || o->resume || o->palette;
    double model = copies * (double)n_params * sizeof(real) +
                   (double)activations_bytes(c, o->micro_batch, keep) +
                   (double)activations_bytes(c, min(train_samples(o), sample_batch(c)), KEEP_PAST);
    return PROCESS_BYTES + fmax(model, has_palette ? 0 : HISTOGRAM_BYTES);
}

/* A row of the log. The last one is still being summed up: where the run stands. */
typedef struct {
    double step, seconds, lr; // of its last step; the time that all steps took
    Scores train, held;       // NaN: not measured here
} Row;
enum { ROW = sizeof(Row) / sizeof(double) };

/* A run of pre-training or fine-tuning: everything that a step needs, laid out once. Pre-training
   minimises L_GEN and looks at the test pictures on the way. Fine-tuning minimises gen_weight x
   L_GEN + L_CLF, looks at the validation pictures, and keeps the weights that did best there. */
typedef struct {
    Options *o;
    int fine; // fine-tuning; the weight of L_CLF
    Model model;
    Model result; // what is saved: the model, or the best of a fine-tuning so far
    Dataset data;
    Subset train, held; // pictures to learn from, and those to look at on the way
    Pass pass;
    Adam adam;
    Size *order, epoch; // of the training images in this epoch
    Row *log;           // row 0 is the start, row n_rows the unfinished one
    Size n_rows;
    Row best;           // of the log, by accuracy
    real *drawn;        // (SHEET_LINES, line) tokens of progress.png
    Size line, n_drawn; // one test's, how many tests'
    double began;       // when this process would have begun, had it done all steps
    const char *words;  // the command line, for --resume
    char *classes;      // the model's, a line each, for --resume
    Safetensors state;  // of the run that is resumed
    const char *dir;    // where to write: --out, also where it has been moved meanwhile
    double n_saved;     // how often; 0: what lies in the folder may be another run's
} Run;

/* Image number `index`, counted over all epochs, into place b of the pass, flipped at random,
   padded and cropped at random; and its label. */
static void next_image(Run *r, Size index, Size b) {
    const Images *set = &r->data.train;
    Size n = r->train.n, T = set->px * set->px, epoch = index / n;
    uint64_t seed = (uint64_t)r->o->seed, counter = index;
    if (epoch != r->epoch) {
        memcpy(r->order, r->train.index, n * sizeof *r->order);
        random_shuffle(r->order, n, seed, stream_of(FOR_ORDER, epoch));
        r->epoch = epoch;
    }
    Size picture = r->order[index % n], pad = r->o->shift, window = 2 * pad + 1;
    int flip = r->o->flip && random_bits(seed, stream_of(FOR_FLIP, 0), counter) & 1;
    Size crop = (Size)(random_bits(seed, stream_of(FOR_CROP, 0), counter) >> 32);
    image_augment(set->tokens + picture * T, r->pass.tokens + b * T, set->px, flip, pad,
                  crop % window, crop / window % window);
    r->pass.labels[b] = set->labels[picture];
}

/* One step of Adam on the next batch. */
static void train_step(Run *r) {
    const Options *o = r->o;
    Row *row = &r->log[r->n_rows];
    Size step = (Size)row->step;
    double share = 1.0 / (double)o->batch;
    Pass *pass = &r->pass;
    for (Size i = 0; i < o->batch; i += o->micro_batch) {
        Size first = step * o->batch + i;
        pass->batch.B = min(o->micro_batch, o->batch - i);
        for (Size b = 0; b < pass->batch.B; b++) next_image(r, first + b, b);
        pass_mask(pass, positions(&o->config), o->mask_prob, o->seed, (uint64_t)first);
        Losses sum = objective(&r->model, pass->acts, &pass->batch, o->gen_weight * share,
                               r->fine * share, r->adam.grads);
        row->train.gen += sum.gen / (double)o->batch;
        row->train.clf += sum.clf / (double)o->batch;
    }
    row->step++;
    row->lr = learning_rate(step, o->steps, o->warmup, o->lr);
    adam_step(&r->adam, step + 1, row->lr);
}

/* What --resume needs: the tensors that make up the state, for writing and reading. */
enum { N_STATE = 7 };

static void state_list(const Run *r, Stored list[N_STATE]) {
    Size n = r->adam.n, k = r->fine ? 3 : 2; // moments, and the best weights, which lie behind them
    const Stored all[N_STATE] = {
        {"palette", REAL_DTYPE, 2, {r->model.config.n_vocab, 3}, .data = r->model.palette},
        {"params", REAL_DTYPE, 1, {n}, .data = r->adam.params},
        {"moments", REAL_DTYPE, 2, {k, n}, .data = r->adam.first},
        {"rows", F64, 2, {r->n_rows + 1, ROW}, .wide = &r->log->step},
        {"best", F64, 1, {ROW}, .wide = &r->best.step},
        {"drawn", REAL_DTYPE, 2, {r->n_drawn, r->line}, .data = r->drawn},
        {"saves", F64, 1, {1}, .wide = &r->n_saved}};
    memcpy(list, all, sizeof all);
}

/* The model of a run that is resumed, but for its weights, which are read with the rest. */
static void state_model(Model *m, const Safetensors *state) {
    char fields[1024], *names = need_memory(state->start, 1); // not longer than the header
    Size n_class = 0;
    if (safetensors_metadata(state, "config", fields, sizeof fields) ||
        safetensors_metadata(state, "classes", names, state->start))
        stop("%s: no config in it; is it another version's?", state->path);
    need(!json_check(fields, (Size)strlen(fields), state->path));
    for (const char *c = names; *c; c++) n_class += *c == '\n';
    need(!model_promised(m, fields, state->path, n_class, state));
    for (Size k = 0, length; k < n_class; k++, names += length + 1) {
        length = (Size)strcspn(names, "\n");
        snprintf(m->class_names[k], sizeof(ClassName), "%.*s", (int)length, names);
    }
    const Size K = m->config.n_vocab;
    need(!stored_read(state, &(Stored){"palette", REAL_DTYPE, 2, {K, 3}, .data = m->palette}));
    for (Size i = 0; i < 3 * K; i++)
        if (!is_shade(m->palette[i])) stop("%s: its palette is not of -1 to 1", state->path);
}

static void state_load(Run *r) {
    const Safetensors *file = &r->state;
    Stored list[N_STATE], found = {.n_dim = 0};
    if (safetensors_find(file, "rows", &found) && found.n_dim == 2 && found.shape[0] > 2 &&
        found.shape[1] == ROW) {
        r->n_rows = found.shape[0] - 1;
        r->log = need_memory(found.shape[0], sizeof *r->log);
    }
    if (safetensors_find(file, "drawn", &found)) r->n_drawn = min(found.shape[0], SHEET_LINES);
    state_list(r, list);
    for (int i = 1; i < N_STATE; i++) need(!stored_read(file, &list[i])); // 0: palette, is read
    const Row *now = &r->log[r->n_rows];
    int sound = isfinite(now->train.gen + now->train.clf) && r->best.held.accuracy >= -1 &&
                r->best.held.accuracy <= 1 && r->best.step >= 0 && r->best.step <= now->step &&
                r->n_saved >= 0;
    for (Size i = 0; i <= r->n_rows && sound; i++) {
        const Row *row = &r->log[i];
        sound = row->step >= (i ? row[-1].step : 0) && row->step == floor(row->step) &&
                isfinite(row->seconds + row->lr);
        for (Size k = 0; k < ROW && sound; k++) sound = !(fabs((&row->step)[k]) > FLT_MAX);
    }
    for (Size i = 0; i < r->adam.n && sound; i++) sound = r->adam.second[i] >= 0;
    for (Size i = 0; i < r->n_drawn * r->line && sound; i++)
        sound = r->drawn[i] >= 0 && r->drawn[i] < (real)r->o->config.n_vocab;
    if (!sound) stop("%s: its numbers are not those of a run", file->path);
    if (now->step > (double)r->o->steps)
        stop("--steps %lld: the run in %s has done %.0f", r->o->steps, r->o->out, now->step);
    say(NOTE, "resuming at step %.0f of %lld", now->step, r->o->steps);
}

/* log.csv: the columns that the command fills; fields without a value stay empty. */
static void log_write(const Run *r, const char *path) {
    FILE *f = file_open(path, "wb");
    need(f != NULL);
    fprintf(f, "step,seconds,lr,train_nats,%s_nats%s\n", r->fine ? "validation" : "test",
            r->fine ? ",train_class_nats,validation_class_nats,validation_accuracy" : "");
    for (const Row *row = r->log + 1; row < r->log + r->n_rows; row++) {
        const double scores[] = {row->train.gen, row->held.gen, row->train.clf, row->held.clf,
                                 row->held.accuracy};
        fprintf(f, "%.0f,%.3f,%.6g", row->step, row->seconds, row->lr);
        for (int k = 0; k < (r->fine ? 5 : 2); k++)
            if (isfinite(scores[k])) fprintf(f, ",%.5f", scores[k]);
            else fputc(',', f);
        fputc('\n', f);
    }
    need(!file_finish(f, path, 0));
}

static void loss_chart(const Run *r, const char *path) {
    const Row *rows = r->log + 1;
    Size n = r->n_rows - 1;
    const Series series[] = {
        {"training", "#5b8fc7", n, ROW, &rows->step, &rows->train.gen, 0},
        {r->fine ? "validation" : "test", "#c0392b", n, ROW, &rows->step, &rows->held.gen, 3},
        {"training, L_CLF", "#5fa05a", n, ROW, &rows->step, &rows->train.clf, 0},
        {"validation, L_CLF", "#b8860b", n, ROW, &rows->step, &rows->held.clf, 3}};
    need(!chart_write(path, "Loss", "step", r->fine ? "nats" : "nats per pixel", series,
                      r->fine ? 4 : 2));
}

/* The palette of --palette, read before all else since it has its own size; NULL: none is given. */
static real *palette_given(Options *o) {
    Size wanted = o->config.n_vocab, *K = &o->config.n_vocab;
    if (!o->palette) return NULL;
    real *palette = palette_read(o->palette, K);
    need(palette != NULL);
    if (is_given(o, "n-vocab") && *K != wanted)
        stop("%s has %lld colours, not --n-vocab %lld", o->palette, *K, wanted);
    return palette;
}

/* One that k-means finds in the training pictures; its size becomes the option's. */
static real *palette_make(Options *o, const Images *train) {
    Size wanted = o->config.n_vocab, *K = &o->config.n_vocab;
    say(NOTE, "palette: k-means, %lld colours", wanted);
    real *palette = need_memory(wanted * 3, sizeof *palette);
    *K = palette_build(palette, wanted, train->rgb, train->n * train->px * train->px, o->seed,
                       PALETTE_ITERATIONS, progress);
    progress_clear();
    need(*K > 0);
    if (*K < wanted) say(NOTE, "palette: %lld colours are all there are, not %lld", *K, wanted);
    return palette;
}

/* What fine-tuning prepares: pictures to learn from and to choose by, and, unless the model has it
   already, a head for the data's classes. A head starts at zero and is the last tensor. */
static void run_tune(Run *r) {
    Options *o = r->o;
    const Dataset *data = &r->data;
    Model *m = &r->model, old = *m;
    Size C = o->config.n_class = data->n_class;
    if (C < 2) stop("%s: %lld classes, which leaves nothing to learn", o->data, C);
    if (labels_split(&data->train, C, o->labels_per_class, o->seed, 0, &r->train, &r->held))
        stop("%s: %s", o->data, error_text());
    say(NOTE, "pictures: %lld to learn from, %lld to choose by", r->train.n, r->held.n);
    if (classes_agree(m, data)) return;
    if (o->resume) stop("%s: has other classes than the run in %s", o->data, o->out);
    need(!model_init(m, o->config));
    memcpy(m->class_names, data->class_names, C * sizeof *m->class_names);
    memcpy(m->palette, old.palette, 3 * o->config.n_vocab * sizeof *m->palette);
    memcpy(m->params, old.params, m->tensors[m->n_tensors - 1].offset * sizeof *m->params);
    model_free(&old);
}

/* Is there the memory that training takes? Found out before the work on a palette. */
static void need_room(Options *o) {
    Model sizes;
    need(!model_list(&sizes, o->config));
    if (o->micro_batch < 0) { // of 40 bytes for each number of a layer caches hold about 50 MB
        Size image = positions(&o->config) * o->config.n_embd * o->config.n_layer;
        o->micro_batch = o->batch;
        while (o->micro_batch > 1 && o->micro_batch * image > 1250000)
            o->micro_batch = (o->micro_batch + 1) / 2;
    }
    double bytes = train_bytes(o, sizes.n_params), limit = memory_limit();
    int known = is_given(o, "preset") && o->preset > 0; // "igpt-s: ...", a name and its words
    const char *name = known ? presets[o->preset] : "this model:";
    if (bytes > limit)
        stop("%.*s needs %.0f MB to train, there are %.0f MB: try a smaller --micro-batch, "
             "--recompute, or a smaller model",
             (int)strcspn(name, ":"), name, bytes / 1e6, limit / 1e6);
    model_free(&sizes);
}

/* Is there a model or a run? */
static int holds_model(const char *dir) { return found_in(dir, run_files, MODEL_FILES) != NULL; }

/* From here on no other process writes a model or a palette there; only now is what lies there
   looked at, so as not to lose a run by typing its command again, nor a model that came from
   elsewhere. A folder that is not there yet is taken once it has been made. */
static void folder_take(const Options *o) {
    Safetensors state;
    char steps[32] = "?", command[32] = "?";
    if (folder_is_locked || path_kind(o->out) != FOLDER) return;
    int fails = folder_lock(o->out);
    if (fails == 1) stop("%s: another run is writing there", o->out);
    if (fails < 0) stop("cannot lock the folder %s: %s", o->out, strerror(errno));
    folder_is_locked = !fails;
    if (o->resume || o->overwrite || !holds_model(o->out)) return;
    if (o->command->bit == PALETTE)
        stop("%s holds a model, whose palette belongs to its weights: take another --out", o->out);
    const char *path = file_in(o->out, STATE);
    if (path_kind(path) == NOTHING) stop("%s holds a model: --overwrite replaces it", o->out);
    if (!safetensors_open(&state, path)) {
        safetensors_metadata(&state, "step", steps, sizeof steps);
        safetensors_metadata(&state, "command", command, sizeof command);
    }
    if (strcmp(command, o->command->name))
        stop("%s holds a run of igpt %s: take another --out, or --overwrite gives it up", o->out,
             command);
    stop("%s holds a run of %s steps: --resume goes on with it, --overwrite starts anew", o->out,
         steps);
}

/* The model, of a state, of a directory or a new one, and the pictures as its tokens. */
static void run_load(Run *r) {
    Options *o = r->o;
    Model *m = &r->model;
    const Config *c = &o->config;
    real *colours = palette_given(o);
    const char *from = r->fine ? o->model : o->init;
    int is_new = !o->resume && !from; // the model: its palette and weights are yet to be made
    if (o->resume) state_model(m, &r->state);
    else if (from) need(!model_load(m, from));
    else need(!config_check(c)); // before the work on a palette
    if (!is_new) options_follow(o, &m->config, o->resume ? o->out : from);
    if (!is_new && !o->resume && !has_lm_head(m))
        say(NOTE, "%s has no lm_head.weight: it starts at zero", from);
    need_masks(o, c);
    need(!dataset_read(&r->data, o->data, c->n_px));
    say(NOTE, "%s: pictures: %lld for training, %lld for testing; classes: %lld; at %lld x %lld",
        o->data, r->data.train.n, r->data.test.n, r->data.n_class, c->n_px, c->n_px);
    if (r->fine) run_tune(r);
    else {
        r->train = all_of(&r->data.train);
        r->held = all_of(&r->data.test);
    }
    if (!r->train.n || !r->held.n)
        stop("%s: pictures left: %lld for training, %lld for %s", o->data, r->train.n, r->held.n,
             r->fine ? "validation" : "tests");
    need_room(o);
    need(!folder_make(o->out)); // only now, so that no run that cannot begin leaves one
    folder_take(o);
    need_outputs(o->out, run_files);
    if (is_new) {
        if (!colours) colours = palette_make(o, &r->data.train);
        need(!model_init(m, *c));
        memcpy(m->palette, colours, 3 * c->n_vocab * sizeof *colours);
    }
    if (is_new || o->from_scratch) model_randomise(m, o->seed);
    need(!images_quantise(&r->data.train, m->palette, c->n_vocab));
    need(!images_quantise(&r->data.test, m->palette, c->n_vocab));
}

/* The options that depend on the model and the data, and the run's memory. */
static void run_open(Run *r) {
    Options *o = r->o;
    const Config *c = &o->config;
    Size n = r->model.n_params;
    if (o->warmup < 0) o->warmup = min(r->train.n / o->batch, o->steps / 2);
    if (o->eval_every < 0) o->eval_every = (o->steps + 9) / 10;
    if (o->save_every < 0) o->save_every = o->eval_every;
    if (o->shift < 0) o->shift = r->fine ? c->n_px / 8 : 0;
    o->shift = min(o->shift, c->n_px - 1);
    r->pass = pass_open(c, o->micro_batch, o->recompute ? KEEP_INPUTS : KEEP_ALL);
    r->order = need_memory(r->train.n, sizeof *r->order);
    char *end = r->classes = need_memory(c->n_class * (Size)sizeof(ClassName) + 1, 1);
    for (Size k = 0; k < c->n_class; k++) end += sprintf(end, "%s\n", r->model.class_names[k]);
    r->log = need_memory(2, sizeof *r->log);
    r->line = min(train_samples(o), SHEET_COLUMNS) * positions(c);
    r->drawn = need_memory(SHEET_LINES * r->line, sizeof *r->drawn);
    r->n_rows = 1;
    r->best.held.accuracy = -1; // which the first test of a fine-tuning beats
    real *memory = need_memory((r->fine ? 4 : 3) * n, sizeof *memory);
    r->adam = (Adam){n, r->model.params, memory, memory + n, memory + 2 * n};
    r->result = r->model;
    if (r->fine) r->result.params = memcpy(memory + 3 * n, r->model.params, n * sizeof *memory);
}

/* A loss, score or weight that is not finite ends the run; what was saved before stays. */
static void need_finite(const Run *r, double value) {
    const Row *now = &r->log[r->n_rows];
    if (isfinite(value)) return;
    stop("step %.0f, learning rate %g: the run is no longer finite (%g). %s", now->step, now->lr,
         value,
         r->n_saved > 0 || r->o->resume
             ? "The last save stays; go on from it with --resume and a lower "
               "--lr, or start anew"
             : "Nothing has been saved; start anew with a lower --lr");
}

/* progress.png: the first pictures of every test, a line each, so that one sees the run learn:
   their random numbers are the same in all tests. Where all lines are full, every other goes. */
static void progress_sheet(Run *r, const uint16_t *samples) {
    if (r->n_drawn == SHEET_LINES)
        for (r->n_drawn = 0; r->n_drawn < SHEET_LINES / 2; r->n_drawn++)
            memcpy(r->drawn + r->n_drawn * r->line, r->drawn + (2 * r->n_drawn + 1) * r->line,
                   r->line * sizeof *r->drawn);
    for (Size i = 0; i < r->line; i++) r->drawn[r->n_drawn * r->line + i] = samples[i];
    r->n_drawn++;
    Size px = r->o->config.n_px, T = px * px, n = r->n_drawn * r->line;
    uint16_t *tokens = need_memory(n, sizeof *tokens);
    for (Size i = 0; i < n; i++) tokens[i] = (uint16_t)r->drawn[i];
    const char *path = file_in(r->dir, "progress.png");
    write_sheet(path, tokens, n / T, px, r->model.palette, r->line / T);
    free(tokens);
}

/* Test the run and show how it went, with pictures and the chart; keep the weights of a fine-tuning
   that beat all before. -1: interrupted, as if it had not begun. */
static int run_test(Run *r, Row *row) {
    const Options *o = r->o;
    const Model *m = &r->model;
    const Images *set = r->fine ? &r->data.train : &r->data.test;
    Size n = train_samples(o), px = o->config.n_px;
    uint16_t *samples = need_memory(n * px * px, sizeof *samples);
    row->held = evaluate(m, &r->pass, o->micro_batch, set, &r->held, r->fine, 1, o->mask_prob);
    if (!interrupted) need_finite(r, row->held.gen + (r->fine ? row->held.clf : 0));
    if (n && !interrupted) draw_pictures(o, m, samples, n, 0, NULL);
    if (interrupted) return -1;
    if (n) {
        write_sheet(file_in(r->dir, "samples.png"), samples, n, px, m->palette, SHEET_COLUMNS);
        progress_sheet(r, samples);
    }
    free(samples);
    int best = row->held.accuracy > r->best.held.accuracy;
    if (best) {
        r->best = *row;
        memcpy(r->result.params, m->params, m->n_params * sizeof *m->params);
    }
    if (r->fine)
        say(NOTE, "step %.0f  L_CLF: train %.4f  validation %.4f  accuracy %.2f %%%s", row->step,
            row->train.clf, row->held.clf, 100 * row->held.accuracy,
            best ? ", the best so far" : "");
    else
        say(NOTE, "step %.0f  train %.4f  test %.4f nats per pixel  %s", row->step, row->train.gen,
            row->held.gen,
            n ? file_in(o->out, "samples.png") : "(no samples.png: a BERT model cannot draw)");
    return 0;
}

/* Finish a row of the log, every now and then with a test, and begin the next one. */
static void run_report(Run *r, int testing) {
    r->log = realloc(r->log, (r->n_rows + 2) * sizeof *r->log);
    if (!r->log) stop("out of memory for the log");
    Row row = r->log[r->n_rows];
    double steps = row.step - r->log[r->n_rows - 1].step;
    if (steps > 0) {
        row.seconds = seconds_now() - r->began;
        row.train.gen = r->o->gen_weight > 0 ? row.train.gen / steps : NAN;
        row.train.clf /= steps;
    } else row = r->log[r->n_rows - 1]; // is finished, but was not tested
    row.held = (Scores){NAN, NAN, NAN};
    if (testing && run_test(r, &row)) return;
    r->n_rows += steps > 0;
    r->log[r->n_rows - 1] = row;
    r->log[r->n_rows] = (Row){.step = row.step, .lr = row.lr};
    if (testing) loss_chart(r, file_in(r->dir, "loss.svg"));
}

/* The state comes first: it is one file, which takes its name at once, and has all that --resume
   needs. Before a run's first save another model may lie there, which --overwrite gives up: its
   files go, config.json first, without which the folder does not load, and the new one comes behind
   the other files. So no folder holds parts of two runs that load together. */
static void run_save(Run *r) {
    char step[32], config[1024];
    const char *metadata[] = {
        "command", r->o->command->name, "words",    r->words, "step", step, "config",
        config,    "classes",           r->classes, NULL};
    Stored list[N_STATE];
    Row *now = &r->log[r->n_rows];
    snprintf(step, sizeof step, "%.0f", now->step);
    config_fields(config, &r->model.config);
    for (Size i = 0; i < r->adam.n; i++) {
        need_finite(r, (double)r->adam.params[i]);
        need_finite(r, (double)r->adam.second[i]);
        if (r->o->f16 && fabs((double)r->result.params[i]) >= F16_LIMIT)
            stop("step %.0f: a weight is %g, too large for F16", now->step,
                 (double)r->result.params[i]);
    }
    now->seconds = seconds_now() - r->began;
    state_list(r, list);
    need(!safetensors_write(file_in(r->dir, STATE), list, N_STATE, metadata));
    for (int i = 1; run_files[i] && r->n_saved == 0; i++) { // all but the state
        const char *path = file_in(r->dir, run_files[i]);
        file_remove(path);
        int reason = errno;
        if (path_kind(path) != NOTHING) stop("cannot remove %s: %s", path, strerror(reason));
    }
    log_write(r, file_in(r->dir, "log.csv"));
    need(!model_save(&r->result, r->dir, r->o->f16 ? F16 : REAL_DTYPE));
    r->n_saved++;
}

/* A report of the last step is made if it is due and has not been made, as in a run that was
   interrupted while it was tested. A run is saved before its first test, which is where memory or
   disk may turn out too small, and whose pictures are not to lie beside another run's state. The
   end is always saved: a kill may have left the last state without its model. */
static void run_steps(Run *r) {
    const Options *o = r->o;
    Size log_every = ceil_div(o->steps, LOG_ROWS), from = (Size)r->log[r->n_rows].step;
    double now = seconds_now();
    r->began = now - r->log[r->n_rows].seconds;
    catch_interrupt();
    for (Size done = from;; done++) {
        const Row *row = &r->log[r->n_rows];
        int last = done >= o->steps, testing = last || done % o->eval_every == 0;
        int due = row->step > row[-1].step || (last && !isfinite(row[-1].held.gen));
        if (due && testing && r->n_saved == 0) run_save(r);
        if (due && (testing || done % log_every == 0)) run_report(r, testing);
        int halt = interrupted; // read once: a signal may come between the two uses
        int saving = done % o->save_every == 0;
        if (halt || last || ((done > from || due) && saving)) run_save(r);
        if (halt)
            stop(
                "stopped at step %lld of %lld and saved; go on with: igpt %s --resume --out \"%s\"",
                done, o->steps, o->command->name, o->out);
        if (last) break;
        if (done == from) now = seconds_now(); // a test that was due is no step's time
        train_step(r);
        row = &r->log[r->n_rows];
        double loss = (o->gen_weight * row->train.gen + r->fine * row->train.clf) /
                      (row->step - row[-1].step);
        double pace = (seconds_now() - now) / (double)(done + 1 - from); // seconds for a step
        need_finite(r, loss);
        say(PROGRESS, "step %lld of %lld  loss %.4f  %.0f images/s  %s left", done + 1, o->steps,
            loss, (double)o->batch / pace, clock_text(pace * (double)(o->steps - done - 1)));
    }
}

/* The figures of a run that has come to its end; a fine-tuned model is tested now, once. */
static void run_print(Run *r) {
    const Options *o = r->o;
    const Row *row = &r->log[r->n_rows - 1];
    Scores s = row->held;
    printf("step %.0f\nseconds %.1f\n", row->step, row->seconds);
    if (isfinite(row->train.gen)) printf("train_nats_per_pixel %.5f\n", row->train.gen);
    if (r->fine) {
        Subset all = all_of(&r->data.test);
        s = evaluate(&r->result, &r->pass, o->micro_batch, &r->data.test, &all, 1, o->masks,
                     o->mask_prob);
        if (interrupted)
            stop("all steps are saved, not tested; go on with: igpt finetune --resume --out \"%s\"",
                 o->out);
        need_finite(r, s.gen + s.clf);
        printf("train_class_nats %.5f\nbest_step %.0f\nvalidation_accuracy %.4f\n", row->train.clf,
               r->best.step, r->best.held.accuracy);
    }
    print_scores(&s, &r->data, &r->result);
    printf("peak_memory_mb %.0f\n", peak_memory() / 1e6);
}

/* Open the state of the run in --out; the words with which it was started come before those of this
   command line, and are returned. */
static const char *run_reopen(Options *o, Safetensors *state) {
    char name[16];
    const char *path = file_in(o->out, STATE);
    if (path_kind(path) == NOTHING)
        stop("%s holds no run to resume; igpt %s %s starts one", o->out, o->command->name,
             holds_model(o->out) ? "--overwrite" : "without --resume");
    need(!safetensors_open(state, path));
    char *saved = need_memory(state->start, 1); // as long as the header, at the most
    if (safetensors_metadata(state, "command", name, sizeof name) || strcmp(name, o->command->name))
        stop("%s: is no run of igpt %s", state->path, o->command->name);
    if (safetensors_metadata(state, "words", saved, state->start))
        stop("%s: no command line in it; is it another version's?", state->path);
    need(!options_all(o, o->command, o->words, o->n_words, saved));
    return saved;
}

static void command_train(Options *o) { // and finetune
    Run run = {.o = o, .fine = o->command->bit == FINETUNE, .epoch = -1};
    char derived[256];
    const char *saved = derived;
    if (!!o->palette + !!o->init + o->resume > 1)
        stop("--palette, --init and --resume cannot go together: each of them brings a palette");
    if (o->resume && o->overwrite) stop("--resume and --overwrite cannot go together");
    folder_take(o);
    if (o->resume) saved = run_reopen(o, &run.state);
    if (!run.fine) o->gen_weight = 1;
    run_load(&run);
    run_open(&run);
    // Kept although nobody typed it: what follows from --steps, and defaults that may yet change.
    snprintf(derived, sizeof derived,
             "--steps\n%lld\n--warmup\n%lld\n--eval-every\n%lld\n--batch\n%lld\n"
             "--micro-batch\n%lld\n--lr\n%.17g\n",
             o->steps, o->warmup, o->eval_every, o->batch, o->micro_batch, o->lr);
    run.words = words_keep(saved, o);
    say(NOTE, "%lld layers, d %lld, %lld heads, %lld colours: %.2f million parameters, %.0f MB",
        o->config.n_layer, o->config.n_embd, o->config.n_head, o->config.n_vocab,
        (double)run.model.n_params / 1e6, train_bytes(o, run.model.n_params) / 1e6);
    if (o->resume) {
        state_load(&run);
        safetensors_close(&run.state);
    }
    run.dir = folder_enter(console.where = o->out); // all other files have been read
    run_steps(&run);
    run_print(&run);
}

/* ==== 15 commands ===============================================================================
   Everything else that a person can ask for, and main. The idea to take away: a command reads,
   calls the sections above, and prints; what fails ends it at once, by need() or stop(). */

/* Drawing and L_GEN take an lm_head. */
static void need_lm_head(const Options *o, const Model *m) {
    if (!has_lm_head(m))
        stop("%s has no lm_head.weight, or all of it is zero: it was saved as a classifier or as a "
             "bare model, and can neither draw nor be tested by its loss",
             o->model);
}

static void command_sample(Options *o) {
    Model m;
    need(!model_load(&m, o->model));
    need_lm_head(o, &m);
    need_outputs(o->out, (const char *[]){"samples.png", NULL});
    Size px = m.config.n_px;
    uint16_t *tokens = need_memory(o->n * px * px, sizeof *tokens);
    draw_and_time(o, &m, tokens, o->n, 0, NULL);
    const char *path = file_in(o->out, "samples.png");
    write_sheet(path, tokens, o->n, px, m.palette, min(o->n, SHEET_COLUMNS));
    printf("samples %s\n", path);
}

/* The pictures to complete: those of --image; or test pictures, evenly spread from the one that the
   seed counts to. */
static Images originals_read(const Options *o, const Model *m) {
    enum { TEST_PICTURES = 8 };
    Images set = {.n = o->n_images, .px = m->config.n_px};
    Dataset data;
    if (!o->image) {
        need(!dataset_read(&data, o->data, set.px));
        set.n = min(data.test.n, TEST_PICTURES);
    }
    Size bytes = 3 * set.px * set.px;
    set.rgb = need_memory(set.n, bytes);
    for (Size i = 0; i < set.n; i++) {
        if (o->image) need(!image_read(o->image[i], images_at(&set, i), set.px));
        else {
            Size from = (i * data.test.n / set.n + o->seed) % data.test.n;
            memcpy(images_at(&set, i), images_at(&data.test, from), bytes);
        }
    }
    need(!images_quantise(&set, m->palette, m->config.n_vocab));
    return set;
}

static void command_complete(Options *o) {
    Model m;
    need(!model_load(&m, o->model));
    Size px = m.config.n_px, T = px * px, rows = o->rows < 0 ? px / 2 : o->rows;
    Size each = o->n, columns = each + 2;
    if (rows > px) stop("--rows %lld: the model's pictures have %lld", rows, px);
    need_lm_head(o, &m);
    Images set = originals_read(o, &m);
    need_outputs(o->out, (const char *[]){"completions.png", NULL});
    uint16_t *drawn = need_memory(set.n * each * T, sizeof *drawn);
    for (Size i = 0; i < set.n * each; i++)
        memcpy(drawn + i * T, set.tokens + i / each * T, T * sizeof *drawn);
    draw_and_time(o, &m, drawn, set.n * each, rows, set.tokens);
    uint8_t *sheet = need_memory(set.n * columns * T, 3);
    for (Size i = 0; i < set.n; i++)
        completions_line(sheet + i * 3 * columns * T, &m, set.tokens + i * T, rows,
                         drawn + i * each * T, each);
    const char *path = file_in(o->out, "completions.png");
    need(!sheet_write(path, sheet, set.n * columns, px, columns));
    printf("completions %s\n", path);
}

static void command_eval(Options *o) {
    enum { B = 16 };
    Model m;
    Dataset data;
    need(!model_load(&m, o->model));
    need_masks(o, &m.config);
    need(!dataset_read(&data, o->data, m.config.n_px));
    int classes = classes_agree(&m, &data);
    if (!classes) need_lm_head(o, &m);
    if (m.config.n_class && !classes)
        say(NOTE, "no accuracy: the classes of %s are not those of %s", o->data, o->model);
    Pass pass = pass_open(&m.config, B, KEEP_NOTHING);
    need(!images_quantise(&data.test, m.palette, m.config.n_vocab));
    Subset all = all_of(&data.test);
    Scores s = evaluate(&m, &pass, B, &data.test, &all, classes, o->masks, o->mask_prob);
    if (!isfinite(s.gen + (classes ? s.clf : 0)))
        stop("%s: its loss is not finite: weights are too large", o->model);
    printf("images %lld\n", data.test.n);
    print_scores(&s, &data, &m);
}

static void print_millions(const char *name, Size n) { // as the paper's table has them, or finer
    double millions = (double)n / 1e6;
    printf(millions < 10 ? "%s %.2f\n" : "%s %.0f\n", name,
           millions < 10 ? millions : floor(millions));
}

static void command_info(Options *o) {
    Model m, nominal;
    if (o->model && is_given(o, "preset")) stop("--preset and --model cannot go together");
    if (o->model) {
        need(!model_lacks(o->model, "config.json"));
        const char *path = file_in(o->model, "config.json");
        char *json = json_read(path, JSON_BYTES);
        Config saved;
        need(json && !config_load(&saved, json, path));
        options_follow(o, &saved, o->model);
    }
    Config c = o->config;
    need(!model_list(&m, c));
    double forward = model_flops(&m), training = train_bytes(o, m.n_params);
    double sampling = PROCESS_BYTES + (double)m.n_params * sizeof(real) +
                      (double)activations_bytes(&c, sample_batch(&c), KEEP_PAST);
    printf("n_layer %lld\nn_embd %lld\nn_head %lld\nn_px %lld\nn_vocab %lld\n", c.n_layer, c.n_embd,
           c.n_head, c.n_px, c.n_vocab);
    c.n_px = 32, c.n_vocab = 512; // what the paper's table counts
    need(!model_list(&nominal, c));
    printf("parameters %lld\n", m.n_params);
    print_millions("parameters_millions", m.n_params);
    print_millions("parameters_millions_at_32px_512_colours", nominal.n_params);
    printf("forward_gflop_per_image %.4g\ntraining_gflop_per_image %.4g\n", forward / 1e9,
           3 * forward / 1e9);
    printf("training_memory_mb %.0f\nsampling_memory_mb %.0f\n", training / 1e6, sampling / 1e6);
}

static int by_light(const void *a, const void *b) { // of colours
    const real *x = a, *y = b;
    double light = 0.299 * (double)(x[0] - y[0]) + 0.587 * (double)(x[1] - y[1]) +
                   0.114 * (double)(x[2] - y[2]);
    if (light == 0) return memcmp(x, y, 3 * sizeof *x); // any qsort agrees
    return light > 0 ? 1 : -1;
}

/* A sheet about a palette: pictures of its colours, from dark to light, then rows of test pictures,
   each above a row of what the palette makes of them. */
static void palette_sheet(const char *path, const real *palette, Size K, const Images *test,
                          const uint8_t *quantised) {
    enum { COLUMNS = SHEET_COLUMNS, PAIRS = 2 };
    Size px = test->px, T = px * px, side = px > 1 ? px / 2 : 1, zoom = px / side; // of swatches
    Size top = round_up(ceil_div(K, side * side), COLUMNS), n = top + 2 * PAIRS * COLUMNS;
    uint8_t *rgb = memset(need_memory(n * T, 3), GROUND, 3 * n * T);
    real *sorted = memcpy(need_memory(3 * K, sizeof *sorted), palette, 3 * K * sizeof *sorted);
    qsort(sorted, K, 3 * sizeof *sorted, by_light);
    for (Size i = 0; i < top * T; i++) {
        Size y = i / px % px / zoom, x = i % px / zoom, k = (i / T * side + y) * side + x;
        uint16_t token = (uint16_t)k;
        if (y < side && x < side && k < K) palette_colours(rgb + 3 * i, &token, 1, sorted);
    }
    for (Size i = 0; i < min(test->n, PAIRS * COLUMNS); i++) {
        uint8_t *above = rgb + 3 * T * (top + i / COLUMNS * 2 * COLUMNS + i % COLUMNS);
        memcpy(above, images_at(test, i), 3 * T);
        memcpy(above + 3 * T * COLUMNS, quantised + 3 * T * i, 3 * T);
    }
    need(!sheet_write(path, rgb, n, px, COLUMNS));
}

static void command_palette(Options *o) {
    Dataset data;
    const Config *c = &o->config;
    folder_take(o);
    real *palette = palette_given(o);
    need(!dataset_read(&data, o->data, c->n_px));
    need(!folder_make(o->out));
    folder_take(o);
    need_outputs(o->out, (const char *[]){"preprocessor_config.json", "palette.png", NULL});
    const Images *test = &data.test;
    if (!palette) palette = palette_make(o, &data.train);
    Size n = test->n * test->px * test->px;
    uint16_t *tokens = need_memory(n, sizeof *tokens);
    uint8_t *rgb = need_memory(n, 3);
    need(!palette_index(tokens, test->rgb, n, palette, c->n_vocab));
    palette_colours(rgb, tokens, n, palette);
    double squares = 0;
    for (Size i = 0; i < 3 * n; i++) squares += pow((double)test->rgb[i] - rgb[i], 2);
    need(!palette_save(file_in(o->out, "preprocessor_config.json"), palette, c->n_vocab, c->n_px));
    palette_sheet(file_in(o->out, "palette.png"), palette, c->n_vocab, test, rgb);
    printf("colours %lld\nrms_error %.3f\n", c->n_vocab, sqrt(squares / (3 * (double)n)));
    printf("palette %s\n", file_in(o->out, "preprocessor_config.json"));
    printf("picture %s\n", file_in(o->out, "palette.png"));
}

/* The linear probe. */

enum { PROBE_BATCH = 16, PROBE_DRAWS = 5 };

typedef struct {
    char name[48];                            // a layer, "pixels", or "2-4", joined layers
    double layer, l2;                         // L2 strength: geometric mean over draws
    double mean[N_PARTS], deviation[N_PARTS]; // accuracy in percent over draws
} ProbeRow;

typedef struct {
    const Options *o;
    Model model;
    Dataset data;
    Images set; // the data's labelled pictures, those for training first
    Subset all; // of these
    Size layers, draws;
    Subset part[PROBE_DRAWS][N_PARTS];
    ProbeRow *rows; // layers 0 .. L, pixels, then joined layers where --concat asks for them
    Size n_rows;
    uint8_t *right; // (rows, test pictures): told right by the last draw's probe, or not
} ProbeRun;

static void probe_open(ProbeRun *p) {
    const Options *o = p->o;
    need(!model_load(&p->model, o->model));
    need_masks(o, &p->model.config);
    p->layers = p->model.config.n_layer + 1;
    if (o->concat > p->layers)
        stop("--concat %lld: there are only %lld layers", o->concat, p->layers);
    need(!dataset_read(&p->data, o->data, p->model.config.n_px));
    if (p->data.n_class < 2)
        stop("%s: a probe needs two classes or more, there are %lld", o->data, p->data.n_class);
    Images *train = &p->data.train, *test = &p->data.test, *set = &p->set;
    Size n_train = train->n, bytes = 3 * train->px * train->px;
    while (n_train > 0 && train->labels[n_train - 1] == NO_LABEL) n_train--; // STL-10's come last
    *set = (Images){.n = n_train + test->n, .px = train->px};
    set->labels = need_memory(set->n, sizeof *set->labels); // the data keeps its own
    memcpy(set->labels, train->labels, n_train * sizeof *set->labels);
    memcpy(set->labels + n_train, test->labels, test->n * sizeof *set->labels);
    set->rgb = realloc(train->rgb, set->n * bytes);
    if (!set->rgb) stop("out of memory for the labelled pictures");
    memcpy(images_at(set, n_train), test->rgb, test->n * bytes);
    free(test->rgb);
    train->rgb = test->rgb = NULL;
    p->all = all_of(set);
    p->rows = need_memory(p->layers + 2, sizeof *p->rows);
    p->draws = o->labels_per_class ? PROBE_DRAWS : 1;
    p->right = need_memory(p->layers + 2, test->n);
    for (Size draw = 0; draw < p->draws; draw++) {
        Subset *part = p->part[draw];
        part[TEST_PART] = (Subset){test->n, p->all.index + n_train};
        if (labels_split(train, p->data.n_class, o->labels_per_class, o->seed, draw,
                         &part[TRAIN_PART], &part[VALIDATION_PART]))
            stop("%s: %s", o->data, error_text());
    }
}

/* The features of all layers (n, (L + 1) * width); where there is not the memory to hold them, the
   command ends before the work, with how much it would take. */
static Matrix probe_features(ProbeRun *p) {
    const Options *o = p->o;
    const Config *c = &p->model.config;
    Images *set = &p->set;
    Size T = positions(c), masks = is_masked(c) ? o->masks : 1, B;
    Size cols = p->layers * feature_width(c, (int)o->pool);
    Matrix x = matrix(need_memory(set->n, cols * (Size)sizeof(real)), set->n, cols);
    Pass pass = pass_open(c, PROBE_BATCH, KEEP_NOTHING);
    set->tokens = need_memory(set->n * T, sizeof *set->tokens);
    need(!palette_index(set->tokens, set->rgb, set->n * T, p->model.palette, c->n_vocab));
    for (Size i = 0; i < set->n; i += B) {
        progress("features", i, set->n);
        B = min(PROBE_BATCH, set->n - i);
        pass_fill(&pass, set, p->all.index + i, B);
        for (Size k = 0; k < masks; k++) {
            pass_mask(&pass, T, o->mask_prob, (uint64_t)o->seed, (uint64_t)(k << 32 | i));
            model_features(&p->model, pass.acts, &pass.batch, (int)o->pool, 1.0 / (double)masks,
                           element(x, i, 0));
        }
    }
    for (Size i = 0; i < set->n * cols; i++)
        if (!isfinite(x.data[i]))
            stop("%s: its features are not finite: weights are too large", o->model);
    return x;
}

/* The features, each picture's label, and its part in the first draw. */
static void probe_export(const ProbeRun *p, Matrix x) {
    Size n = p->set.n, layers = p->layers;
    double *labels = need_memory(2 * n, sizeof *labels), *parts = labels + n;
    for (Size i = 0; i < n; i++) {
        labels[i] = p->set.labels[i];
        parts[i] = -1; // not used
    }
    for (int k = 0; k < N_PARTS; k++)
        for (Size i = 0; i < p->part[0][k].n; i++) parts[p->part[0][k].index[i]] = k;
    const Stored list[] = {
        {"features", REAL_DTYPE, 3, {n, layers, x.cols / layers}, .data = x.data},
        {"labels", F32, 1, {n}, .wide = labels},
        {"parts", F32, 1, {n}, .wide = parts}};
    need(!safetensors_write(p->o->features, list, 3, NULL));
    free(labels);
}

/* A row for the features x: one probe for each draw. */
static void probe_row(ProbeRun *p, const char *name, Matrix x) {
    ProbeRow *row = &p->rows[p->n_rows];
    double n = (double)p->draws, logs = 0, squares[N_PARTS] = {0};
    snprintf(row->name, sizeof row->name, "%s", name);
    row->layer = (double)p->n_rows++;
    for (Size draw = 0; draw < p->draws; draw++) {
        Probe probe;
        progress("probe", (p->n_rows - 1) * p->draws + draw,
                 (p->layers + 1 + (p->o->concat > 1)) * p->draws);
        need(!probe_fit(&probe, x, p->set.labels, p->part[draw], p->data.n_class,
                        p->right + (p->n_rows - 1) * p->part[draw][TEST_PART].n));
        logs += log10(probe.l2);
        for (int k = 0; k < N_PARTS; k++) {
            row->mean[k] += 100 * probe.accuracy[k] / n;
            squares[k] += pow(100 * probe.accuracy[k], 2);
        }
    }
    row->l2 = pow(10, logs / n);
    for (int k = 0; k < N_PARTS; k++) // of one draw 0, like what rounding may leave below it
        row->deviation[k] = sqrt(fmax(squares[k] - n * pow(row->mean[k], 2), 0) / fmax(n - 1, 1));
}

/* A row for `count` neighbouring layers of the features x. */
static void probe_layers(ProbeRun *p, Matrix x, Size first, Size count) {
    Size width = x.cols / p->layers;
    char name[48];
    if (count == 1) snprintf(name, sizeof name, "%lld", first);
    else snprintf(name, sizeof name, "%lld-%lld", first, first + count - 1);
    probe_row(p, name, (Matrix){element(x, 0, first * width), x.rows, count * width, x.cols, 1});
}

/* The baseline: the pictures' own bytes. */
static void probe_pixels(ProbeRun *p) {
    Size n = p->set.n, width = 3 * positions(&p->model.config);
    real *x = need_memory(n * width, sizeof *x);
    for (Size i = 0; i < n * width; i++) x[i] = p->set.rgb[i];
    probe_row(p, "pixels", matrix(x, n, width));
    free(x);
}

/* The formats are those of a row's name and L2, and of a part's accuracy and deviation. */
static void probe_table(FILE *f, const ProbeRun *p, const char *start, const char *part) {
    for (const ProbeRow *row = p->rows; row < p->rows + p->n_rows; row++) {
        fprintf(f, start, row->name, row->l2);
        for (int k = 0; k < N_PARTS; k++) fprintf(f, part, row->mean[k], row->deviation[k]);
        fputc('\n', f);
    }
}

static void probe_csv(const ProbeRun *p, const char *path) {
    FILE *f = file_open(path, "wb");
    need(f != NULL);
    fprintf(f, "features,l2,train,train_sd,validation,validation_sd,test,test_sd\n");
    probe_table(f, p, "%s,%.4g", ",%.3f,%.3f");
    need(!file_finish(f, path, 0));
}

static void probe_chart(const ProbeRun *p, const ProbeRow *best, const char *path) {
    Size n = p->layers, w = sizeof(ProbeRow) / sizeof(double);
    const ProbeRow *rows = p->rows;
    const double ends[] = {0, (double)(n - 1)}, chance = 100.0 / (double)p->data.n_class;
    const double pixels = rows[n].mean[TEST_PART], majority = 100 * majority_accuracy(&p->data);
    char title[96] = "Linear probe", best_name[80];
    if (p->o->labels_per_class)
        snprintf(title, sizeof title, "Linear probe, %lld labels a class, mean of %lld draws",
                 p->o->labels_per_class, p->draws);
    snprintf(best_name, sizeof best_name, "best: layer %s, %.1f %%", best->name,
             best->mean[TEST_PART]);
    const Series series[] = {
        {best_name, "#f5b7a8", 1, w, &best->layer, &best->mean[TEST_PART], 8},
        {"test", "#c0392b", n, w, &rows->layer, &rows->mean[TEST_PART], 3},
        {"validation", "#5b8fc7", n, w, &rows->layer, &rows->mean[VALIDATION_PART], 3},
        {"raw pixels, test", "#2e8b57", 2, 1, ends, (const double[]){pixels, pixels}, 0},
        {"majority class", "#8a6d9e", 2, 1, ends, (const double[]){majority, majority}, 0},
        {"chance", "#999999", 2, 1, ends, (const double[]){chance, chance}, 0},
    };
    need(
        !chart_write(path, title, "layer", "accuracy (%)", series, sizeof series / sizeof *series));
}

static void probe_print(const ProbeRun *p, const ProbeRow *best) {
    int several = p->draws > 1;
    Size n = p->part[0][TEST_PART].n;
    const uint8_t *right = p->right + (Size)best->layer * n, *last = p->right + (p->layers - 1) * n;
    double lead = (best->mean[TEST_PART] - p->rows[p->layers - 1].mean[TEST_PART]) / 100,
           differ = 0;
    for (Size i = 0; i < n; i++) differ += right[i] != last[i];
    printf("accuracy in percent\n%-8s %8s", "features", "l2");
    for (int k = 0; k < N_PARTS; k++) printf(" %*s", several ? 17 : 10, part_names[k]);
    putchar('\n');
    probe_table(stdout, p, "%-8s %8.3g", several ? " %10.2f +- %-3.2f" : " %10.2f");
    printf("best_layer %s\nvalidation_accuracy %.4f\ntest_accuracy %.4f\n", best->name,
           best->mean[VALIDATION_PART] / 100, best->mean[TEST_PART] / 100);
    if (!several) // the error is paired: both were asked about the same pictures
        printf("best_minus_last %.4f\nbest_minus_last_error %.4f\n", lead,
               sqrt((differ / (double)n - lead * lead) / (double)n));
    if (p->o->concat > 1)
        printf("joined_test_accuracy %.4f\n", p->rows[p->n_rows - 1].mean[TEST_PART] / 100);
    printf("pixels_test_accuracy %.4f\nmajority_accuracy %.4f\nchance_accuracy %.4f\n",
           p->rows[p->layers].mean[TEST_PART] / 100, majority_accuracy(&p->data),
           1.0 / (double)p->data.n_class);
}

static void command_probe(Options *o) {
    ProbeRun run = {.o = o}, *p = &run;
    Safetensors old;
    Stored found;
    if (o->features && (has_ending(o->features, ".csv") || has_ending(o->features, ".svg")))
        stop("--features %s: a safetensors file is to be written, neither table nor chart",
             o->features);
    probe_open(p);
    need_outputs(o->out, (const char *[]){"probe.csv", "probe.svg", NULL});
    if (o->features) need_output(o->features);
    if (o->features && path_kind(o->features) != NOTHING) {
        need(!safetensors_open(&old, o->features));
        if (!safetensors_find(&old, "features", &found))
            stop("%s: holds other tensors than features, which would be lost", o->features);
        safetensors_close(&old);
    }
    Matrix x = probe_features(p);
    if (o->features) probe_export(p, x);
    const ProbeRow *best = p->rows;
    for (Size l = 0; l < p->layers; l++) {
        probe_layers(p, x, l, 1);
        if (p->rows[l].mean[VALIDATION_PART] > best->mean[VALIDATION_PART]) best = &p->rows[l];
    }
    probe_pixels(p);
    if (o->concat > 1) { // as far as there are neighbours on both sides of the best one
        Size first = (Size)best->layer - (o->concat - 1) / 2;
        first = min(first, p->layers - o->concat);
        probe_layers(p, x, first < 0 ? 0 : first, o->concat);
    }
    probe_csv(p, file_in(o->out, "probe.csv"));
    probe_chart(p, best, file_in(o->out, "probe.svg"));
    say(NOTE, "written: probe.csv and probe.svg in %s", o->out);
    probe_print(p, best);
}

static const Command commands[] = {
    {"train", "pre-train on images", "", TRAIN, command_train},
    {"finetune", "train network and class head together",
     "--out out/finetuned --batch 32 --steps 300 --lr 0.001", FINETUNE, command_train},
    {"probe", "logistic regression on the features of every layer", "", PROBE, command_probe},
    {"sample", "draw new images", "", SAMPLE, command_sample},
    {"complete", "hide the lower part of pictures and finish them", "--n 5 --temperature 0.85",
     COMPLETE, command_complete},
    {"eval", "loss and accuracy on the test images", "", EVAL, command_eval},
    {"palette", "build a palette, or read one, and show it", "--out out/palette", PALETTE,
     command_palette},
    {"info", "a model's parameters, FLOPs and memory, before anything is run", "", INFO,
     command_info},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void help_all(FILE *f) {
    fprintf(f, "igpt - Image GPT in one C file\n\nusage: igpt COMMAND [--option VALUE ...]\n\n");
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(f, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fprintf(f, "\nigpt COMMAND --help shows a command's options. A first run, five minutes:\n\n"
               "  igpt train             learns to draw emoji; look at out/samples.png\n"
               "  igpt sample --n 64     draws more\n"
               "  igpt complete          finishes pictures of which it is given a half\n");
}

/* The command of this name; NULL, and then it has said what is wrong. */
static const Command *command_find(const char *name) {
    for (int letters = 0; letters <= MOST_LETTERS; letters++)
        for (int i = 0; i < N_COMMANDS; i++) {
            if (!is_near(name, commands[i].name, letters)) continue;
            if (letters == 0) return &commands[i];
            return fail("there is no command %s; did you mean %s?", name, commands[i].name), NULL;
        }
    return fail("there is no command %s; igpt --help shows those there are", name), NULL;
}

static int is_help(const char *word) { return !strcmp(word, "--help") || !strcmp(word, "-h"); }

/* How this program was built. The compiler's name may be long and has a line of its own. */
static void print_version(void) {
    printf("igpt %s: %s, ", IGPT_VERSION, sizeof(real) == 8 ? "double" : "float");
#    ifdef IGPT_PLAIN
    printf("plain routines, ");
#    else
    printf("vectors of %d bytes, ", VEC_BYTES);
#    endif
#    ifdef _OPENMP
    printf("OpenMP: %d thread%s\n", threads_get(), threads_get() == 1 ? "" : "s");
#    else
    printf("without OpenMP: one thread\n");
#    endif
#    if defined __GNUC__ && !defined __clang__ && !defined __TINYC__
    puts("gcc " __VERSION__);
#    elif defined __VERSION__
    puts(__VERSION__);
#    else
    puts("a compiler that does not tell its name");
#    endif
}

/* The exit status, but for what failed on the way and has ended the program. */
static int run_command_line(int argc, char **argv) {
    static Options o;
    int asks = argc > 1 && (is_help(argv[1]) || !strcmp(argv[1], "help"));
    if (argc < 2 + asks) {
        help_all(argc < 2 ? stderr : stdout);
        return argc < 2 ? 2 : 0;
    }
    if (!strcmp(argv[1], "--version")) {
        print_version();
        return 0;
    }
    const Command *command = command_find(argv[1 + asks]);
    for (int i = 2; i < argc; i++) asks |= is_help(argv[i]);
    if (command && asks) {
        help_command(command);
        return 0;
    }
    if (!command || options_all(&o, command, argv + 2, argc - 2, "")) {
        fprintf(stderr, "igpt: %s\n", error_text());
        return 2;
    }
    console.quiet = (int)o.quiet;
    console.terminal = is_terminal();
    console.show = o.show < 0 ? !o.quiet && takes_colour() : (int)o.show;
    if (o.threads) threads_set((int)o.threads);
    command->run(&o);
    return 0;
}

int main(int argc, char **argv) {
    argv = process_start(&argc, argv);
    int status = run_command_line(argc, argv);
    if (fflush(stdout) || ferror(stdout)) stop("cannot write to stdout: %s", strerror(errno));
    return status;
}

#endif // IGPT_NO_MAIN

#if defined __GNUC__ && !defined __clang__
#    pragma GCC pop_options
#endif
