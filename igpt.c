/* igpt.c - Image GPT (Chen et al. 2020, "Generative Pretraining from Pixels") in one C file.
   SPDX-License-Identifier: MIT

   Read it from top to bottom; it runs as the data flows:

      1 numbers       real, random numbers, exp, checked allocation, errors, the platform
      2 matmul        one packed, register-tiled matrix product; everything heavy goes through it
      3 layers        each layer's forward beside its backward
      4 model         configuration, the tensor table, parameters, activations, forward, backward
      5 objectives    L_AR, L_BERT, L_CLF and their sum
      6 optimiser     Adam, learning-rate schedule
      7 palette       k-means, quantisation
      8 images        readers, resizing, augmentation
      9 checkpoints   JSON, safetensors, the model directory
     10 sampling      key-value cache, new images, completions
     11 probe         features of every layer, logistic regression by L-BFGS
     12 pictures      PNG, charts, the terminal
     13 commands      train, finetune, probe, sample, complete, eval, palette, info, bench

   igpt.h documents what each public function computes. Notation in comments: B images, T positions,
   K colours, d = n_embd, H heads, L layers, C classes; (B, T, d) is row-major. */

#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64 // files beyond 2 GB on 32-bit machines, too
#include "igpt.h"
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== 1 numbers =================================================================================
   What every section leans on. The idea to take away: random numbers have no state. Each one is a
   hash of (seed, stream, counter), so any of them can be had in any order, by any thread, and
   resuming a run needs nothing but its step number. */

/* The platform: all that is not C11 stands in this block. */
#include <dirent.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef _OPENMP
#    include <omp.h>
#else
static int omp_get_max_threads(void) {
    return 1;
}
static int omp_get_thread_num(void) {
    return 0;
}
static int omp_get_num_procs(void) {
    return 1;
}
static int omp_in_parallel(void) {
    return 0;
}
static void omp_set_num_threads(int n) {
    (void)n;
}
#endif

void threads_set(int n) {
    omp_set_num_threads(n > 0 ? n : omp_get_num_procs());
}

int threads_get(void) {
    return omp_get_max_threads();
}

#ifndef IGPT_NO_MAIN
#    include <sys/resource.h>

/* The most memory this process has held so far, in bytes. */
static double peak_memory(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
#    ifdef __APPLE__
    return (double)usage.ru_maxrss;
#    else
    return 1024.0 * (double)usage.ru_maxrss; // Linux and the BSDs count KiB
#    endif
}

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int terminal_columns(void) { // of stderr's terminal
    struct winsize size;
    return ioctl(2, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
}
#endif

static int is_folder(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

static int64_t file_size(FILE *f) {
    struct stat s;
    return fstat(fileno(f), &s) == 0 ? (int64_t)s.st_size : -1;
}

/* Errors: one sentence, kept until the next one. */
static _Thread_local char last_error[1024];

const char *error_text(void) {
    return last_error;
}

/* Note why the caller fails; returns -1, so that `return fail(...)` does both. */
__attribute__((format(printf, 1, 2))) static int fail(const char *format, ...) {
    char text[sizeof last_error]; // an argument may be the previous sentence
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *c = text; *c; c++) // names out of files must not reach the terminal as commands
        if ((uint8_t)*c < ' ' || *c == 127) *c = '?';
    memcpy(last_error, text, sizeof text);
    return -1;
}

/* Zeroed memory for count items, on a 64-byte boundary (a cache line, the widest vector); NULL and
   an error where the product overflows or there is not enough. Given back with free(). */
static void *zalloc(size_t count, size_t size) {
    void *p = NULL;
    if (size && count > (SIZE_MAX - 64) / size)
        return fail("cannot allocate %zu items of %zu bytes: too large", count, size), NULL;
    size_t bytes = (count * size + 63) / 64 * 64;
    if (posix_memalign(&p, 64, bytes ? bytes : 64))
        return fail("out of memory: cannot allocate %.1f MB", (double)bytes / 1e6), NULL;
    return memset(p, 0, bytes);
}

/* Hand out n reals of the block at base, each piece on a cache line; base NULL only counts. */
static real *carve(real *base, size_t *used, size_t n) {
    real *piece = base ? base + *used : NULL;
    *used += (n + 15) / 16 * 16;
    return piece;
}

/* Integers in files, byte by byte: the same on machines of either byte order. */
static uint64_t get_le(const uint8_t *p, int bytes) {
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

static uint64_t get_be(const uint8_t *p, int bytes) {
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v = v << 8 | p[i];
    return v;
}

static void put_le(uint8_t *p, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++) p[i] = (uint8_t)(v >> 8 * i);
}

static void put_be(uint8_t *p, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++) p[i] = (uint8_t)(v >> 8 * (bytes - 1 - i));
}

enum { PATH_SIZE = 4096 };

/* dir/name, into path. */
static int path_join(char path[PATH_SIZE], const char *dir, const char *name) {
    int n = snprintf(path, PATH_SIZE, "%s/%s", dir, name);
    return n < PATH_SIZE ? 0 : fail("%s: the path is too long", dir);
}

static const char *file_in(const char *dir, const char *name) { // valid until the next call
    static _Thread_local char path[PATH_SIZE];
    return path_join(path, dir, name) ? "" : path;
}

/* Files are read in the open and written in hiding: beside their name, flushed to disk, renamed.
   Whatever happens on the way, the name holds the last whole version. */
static FILE *file_open(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) fail("cannot open %s: %s", path, strerror(errno));
    else if (is_folder(path)) {
        fclose(f);
        f = NULL;
        fail("cannot read %s: it is a folder", path);
    }
    return f;
}

static FILE *file_create(const char *path) {
    char part[PATH_SIZE + 8];
    snprintf(part, sizeof part, "%.*s.part", PATH_SIZE, path);
    FILE *f = fopen(part, "wb");
    if (!f) fail("cannot write %s: %s", part, strerror(errno));
    return f;
}

static int file_finish(FILE *f, const char *path) {
    char part[PATH_SIZE + 8];
    snprintf(part, sizeof part, "%.*s.part", PATH_SIZE, path);
    int bad = ferror(f) || fflush(f) || fsync(fileno(f)), reason = errno;
    if (fclose(f) && !bad) bad = 1, reason = errno;
    if (!bad && rename(part, path)) bad = 1, reason = errno;
    if (!bad) return 0;
    remove(part);
    return fail("cannot write %s: %s", path, strerror(reason));
}

/* Make a folder and those above it; 0 also where it exists already. */
static int folder_make(const char *path) {
    char part[PATH_SIZE];
    if (!*path || strlen(path) >= sizeof part)
        return fail("cannot make a folder whose name is %s", *path ? "too long" : "empty");
    snprintf(part, sizeof part, "%s", path);
    for (char *p = part + 1;; p++) {
        if (*p != '/' && *p != 0) continue;
        char end = *p;
        *p = 0;
        if (mkdir(part, 0777) && !is_folder(part))
            return fail("cannot make the folder %s: %s", part, strerror(errno));
        if (!end) return 0;
        *p = '/';
    }
}

static inline real square_root(real x) {
#ifdef IGPT_DOUBLE
    return sqrt(x);
#else
    return sqrtf(x);
#endif
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

void random_shuffle(int *order, int n, uint64_t seed, uint64_t stream) {
    for (int i = n - 1; i > 0; i--) {
        int j = (int)(random_bits(seed, stream, (uint64_t)i) % (uint64_t)(i + 1));
        int swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
}

/* What a stream is for, in its upper half; the lower half numbers the epoch, tensor or image. */
enum {
    FOR_INIT = 1,
    FOR_ORDER,
    FOR_FLIP,
    FOR_CROP,
    FOR_MASK,
    FOR_SAMPLE,
    FOR_PALETTE,
    FOR_SPLIT,
    FOR_LABELS
};

static uint64_t stream_of(int purpose, uint64_t index) {
    return (uint64_t)purpose << 56 | index;
}

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
    float r = x - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f; // ln 2 in two parts, the first exact
    float p = 0x1.6c16c2p-10f;                            // 1 / 6!, minimax would differ little
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

/* The largest of x[0..n). Separate maxima for each lane let compilers vectorise what they may not
   reorder in a single one. */
static real row_max(const real *x, int n) {
    enum { LANES = 32 };
    real lane[LANES], max = -INFINITY;
    int j = 0;
    for (int i = 0; i < LANES; i++) lane[i] = -INFINITY;
    for (; j + LANES <= n; j += LANES)
        for (int i = 0; i < LANES; i++) lane[i] = x[j + i] > lane[i] ? x[j + i] : lane[i];
    for (; j < n; j++) max = x[j] > max ? x[j] : max;
    for (int i = 0; i < LANES; i++) max = lane[i] > max ? lane[i] : max;
    return max;
}

/* ==== 2 matmul ==================================================================================
   Nearly all the work of a transformer is C (+)= A B. A processor multiplies far faster than it
   reads memory, so the whole art is to use each number many times once it is loaded. Three steps:

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

/* The tile follows the register file: 32 registers of 64 bytes, 16 of 32, 32 or 16 of 16. */
#if defined __AVX512F__
enum { VEC_BYTES = 64, MR = 14, NV = 2 };
#elif defined __AVX__
enum { VEC_BYTES = 32, MR = 6, NV = 2 };
#elif defined __aarch64__
enum { VEC_BYTES = 16, MR = 8, NV = 3 };
#else
enum { VEC_BYTES = 16, MR = 4, NV = 2 };
#endif
enum {
    VL = VEC_BYTES / sizeof(real),
    NR = NV * VL,
    KC = 256,
    MC = 504 / MR * MR,
    NC = 512 / NR * NR
};

/* From one panel to the next. Without the extra cache line the panels would start a multiple of
   2 KB apart and drive each other out of the first-level cache while they are filled. */
enum { PANEL_A = KC * MR + 64 / sizeof(real), PANEL_B = KC * NR + 64 / sizeof(real) };

typedef real vec __attribute__((vector_size(VEC_BYTES)));
typedef real vec_anywhere __attribute__((vector_size(VEC_BYTES), aligned(sizeof(real)), may_alias));

static _Thread_local _Alignas(64) real packed_a[MC / MR * PANEL_A];
static _Thread_local _Alignas(64) real packed_b[NC / NR * PANEL_B];

/* out[k * out_row + i] = x[i * step + k] for VL x VL numbers, in registers: zipping vectors i and
   i + VL / 2 rotates the bits of (row, lane) by one place, and after log2(VL) rounds row and lane
   have changed places. Rows of x from `used` on are taken to be like the last. */
#if !defined IGPT_DOUBLE && defined __has_builtin
#    if __has_builtin(__builtin_shufflevector)
#        if defined __AVX512F__
#            define ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#            define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#        elif defined __AVX__
#            define ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#            define ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#        else
#            define ZIP_LOW 0, 4, 1, 5
#            define ZIP_HIGH 2, 6, 3, 7
#        endif
#    endif
#endif

static inline __attribute__((always_inline)) void transpose(real *out, size_t out_row, int used,
                                                            const real *x, size_t step) {
    vec from[VL];
    for (int i = 0; i < VL; i++)
        from[i] = *(const vec_anywhere *)(x + (size_t)(i < used ? i : used - 1) * step);
#ifdef ZIP_LOW
    vec to[VL];
    for (int round = 1; round < VL; round *= 2) {
        for (int i = 0; i < VL / 2; i++) {
            to[2 * i] = __builtin_shufflevector(from[i], from[i + VL / 2], ZIP_LOW);
            to[2 * i + 1] = __builtin_shufflevector(from[i], from[i + VL / 2], ZIP_HIGH);
        }
        for (int i = 0; i < VL; i++) from[i] = to[i];
    }
    for (int k = 0; k < VL; k++) *(vec_anywhere *)(out + (size_t)k * out_row) = from[k];
#else
    for (int k = 0; k < VL; k++)
        for (int i = 0; i < VL; i++) out[(size_t)k * out_row + i] = from[i][k];
#endif
}

/* Copy one panel: out[k * width + i] = x[i * step + k * k_step] for i < used; what the others hold
   reaches no result. Where width is no multiple of VL, a row's surplus lanes are overwritten by the next
   row's first, which come later; the last row's fall into the gap between panels. */
static inline __attribute__((always_inline)) void pack(real *out, const int width, int used, int K,
                                                       const real *x, size_t step, size_t k_step) {
    int k = 0;
    for (; k_step == 1 && k + VL <= K; k += VL)
        for (int i = (used - 1) / VL * VL; i >= 0; i -= VL)
            transpose(out + k * width + i, width, used - i, x + (size_t)i * step + k, step);
    for (; k < K; k++) {
        const real *from = x + (size_t)k * k_step;
        for (int i = 0; i < used; i++) out[k * width + i] = from[(size_t)i * step];
    }
}

/* The register tile: rows x NR sums over K steps, stored into or added to C. A's numbers lie a_row
   apart within a step of k, a_col from step to step: 1 and MR in a panel. `rows` and a_row are
   constants in each call below: the loops unroll and sum[][] becomes registers. */
static inline __attribute__((always_inline)) void tile(const int rows, int K, const real *a,
                                                       const size_t a_row, size_t a_col,
                                                       const real *b, real *c, size_t c_row,
                                                       int accumulate) {
    vec sum[MR][NV];
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < NV; j++) sum[i][j] = (vec){0};
        for (int j = 0; j < NR; j += 64 / (int)sizeof(real)) // C arrives while the sums are made
            __builtin_prefetch(c + (size_t)i * c_row + j, 1);
    }
    int k = 0;
    do { // K is not 0: said so, gcc keeps sum[][] in registers throughout
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < NV; j++) sum[i][j] += a[i * a_row] * ((const vec *)b)[j];
        a += a_col;
        b += NR;
    } while (++k < K);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < NV; j++) {
            vec_anywhere *out = (vec_anywhere *)(c + (size_t)i * c_row + j * VL);
            if (accumulate) sum[i][j] += *out;
            *out = sum[i][j];
        }
}

static inline __attribute__((always_inline)) void tile_rows(int rows, int K, const real *a,
                                                            const size_t a_row, size_t a_col,
                                                            const real *b, real *c, size_t c_row,
                                                            int accumulate) {
    switch (rows) { // only a matrix's last rows make a lower tile; those above MR never occur
    case 1: tile(1, K, a, a_row, a_col, b, c, c_row, accumulate); break;
    case 2: tile(2, K, a, a_row, a_col, b, c, c_row, accumulate); break;
    case 3: tile(3, K, a, a_row, a_col, b, c, c_row, accumulate); break;
    case 4: tile(4, K, a, a_row, a_col, b, c, c_row, accumulate); break;
    case 5: tile(MR < 5 ? MR : 5, K, a, a_row, a_col, b, c, c_row, accumulate); break;
    case 6: tile(MR < 6 ? MR : 6, K, a, a_row, a_col, b, c, c_row, accumulate); break;
    case 7: tile(MR < 7 ? MR : 7, K, a, a_row, a_col, b, c, c_row, accumulate); break;
    case 8: tile(MR < 8 ? MR : 8, K, a, a_row, a_col, b, c, c_row, accumulate); break;
    case 9: tile(MR < 9 ? MR : 9, K, a, a_row, a_col, b, c, c_row, accumulate); break;
    case 10: tile(MR < 10 ? MR : 10, K, a, a_row, a_col, b, c, c_row, accumulate); break;
    case 11: tile(MR < 11 ? MR : 11, K, a, a_row, a_col, b, c, c_row, accumulate); break;
    case 12: tile(MR < 12 ? MR : 12, K, a, a_row, a_col, b, c, c_row, accumulate); break;
    case 13: tile(MR < 13 ? MR : 13, K, a, a_row, a_col, b, c, c_row, accumulate); break;
    case 14: tile(MR < 14 ? MR : 14, K, a, a_row, a_col, b, c, c_row, accumulate); break;
    }
}

/* A comes in two ways: with the numbers of a step of k side by side (a_row 1), or in rows of NR
   numbers along k (a_row NR), as tiles leave them that make a panel (attention). */
static void tile_whole(int rows, int K, const real *a, size_t a_row, size_t a_col, const real *b,
                       real *c, size_t c_row, int accumulate) {
    if (a_row == 1) tile_rows(rows, K, a, 1, a_col, b, c, c_row, accumulate);
    else tile_rows(rows, K, a, NR, 1, b, c, c_row, accumulate);
}

/* A tile anywhere in C; one that hangs over the right edge is made beside it. */
static void tile_at(int rows, int columns, int K, const real *a, size_t a_row, size_t a_col,
                    const real *b, real *c, size_t c_row, int accumulate) {
    _Alignas(64) real edge[MR * NR];
    if (columns == NR) {
        tile_whole(rows, K, a, a_row, a_col, b, c, c_row, accumulate);
        return;
    }
    tile_whole(rows, K, a, a_row, a_col, b, edge, NR, 0);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
            real *out = &c[(size_t)i * c_row + j];
            *out = accumulate ? *out + edge[i * NR + j] : edge[i * NR + j];
        }
}

/* All panels of a block of A or B, `panel` numbers from one to the next. Where a step of k is a run
   of memory that crosses all panels, it is read in one go: memory delivers runs, not columns. */
static inline __attribute__((always_inline)) void pack_block(real *out, const int width,
                                                             const int panel, int n, int K,
                                                             const real *x, size_t step,
                                                             size_t k_step) {
    int whole = step == 1 ? n / width : 0;
    for (int k = 0; k < K && whole; k++) {
        const real *from = x + (size_t)k * k_step;
        real *to = out + k * width;
        for (int p = 0; p < whole; p++, from += width, to += panel)
            memcpy(to, from, (size_t)width * sizeof *to);
    }
    for (int p = whole; p * width < n; p++)
        pack(out + p * panel, width, n - p * width < width ? n - p * width : width, K,
             x + (size_t)(p * width) * step, step, k_step);
}

/* One block of C: at most MC x NC elements over all of K. */
static void multiply_block(int M, int N, int K, const real *a, size_t a_row, size_t a_col,
                           const real *b, size_t b_row, size_t b_col, real *c, size_t c_row,
                           int accumulate) {
    for (int k0 = 0; k0 < K; k0 += KC) {
        int k = K - k0 < KC ? K - k0 : KC;
        pack_block(packed_a, MR, PANEL_A, M, k, a + (size_t)k0 * a_col, a_row, a_col);
        pack_block(packed_b, NR, PANEL_B, N, k, b + (size_t)k0 * b_row, b_col, b_row);
        for (int j = 0; j < N; j += NR)
            for (int i = 0; i < M; i += MR)
                tile_at(M - i < MR ? M - i : MR, N - j < NR ? N - j : NR, k,
                        packed_a + i / MR * PANEL_A, 1, MR, packed_b + j / NR * PANEL_B,
                        c + (size_t)i * c_row + j, c_row, accumulate || k0);
    }
}

/* Few rows (sampling a few pictures): packing B would cost as much as reading it. Its rows are read
   where they lie, once, and added into sums that stay in the first-level cache: eight at a time, or,
   for one row of A and a B too large for caches, one, since memory delivers a single run fastest.
   The order of summation is that of the tiles, so a picture does not depend on how many are drawn
   with it. */
enum { THIN_M = 16, THIN_SUMS = 4096, THIN_ROWS = 8 };

/* sums (M, width) += x (M, rows) b (rows, n); `rows` is a constant in each call. */
static inline __attribute__((always_inline)) void thin_rows(const int rows, int M, int n,
                                                            const real *x, const real *b,
                                                            size_t b_row, real *sums, int width) {
    int j = 0;
    for (; j + VL <= n; j += VL) {
        vec y[THIN_ROWS];
        for (int k = 0; k < rows; k++) y[k] = *(const vec_anywhere *)(b + (size_t)k * b_row + j);
        for (int i = 0; i < M; i++) {
            vec_anywhere *sum = (vec_anywhere *)(sums + i * width + j);
            vec s = *sum;
            for (int k = 0; k < rows; k++) s += x[i * rows + k] * y[k];
            *sum = s;
        }
    }
    for (int i = 0; i < M; i++) // columns innermost: a sum over k could be reordered
        for (int k = 0; k < rows; k++)
            for (int r = j; r < n; r++)
                sums[i * width + r] += x[i * rows + k] * b[(size_t)k * b_row + r];
}

static void multiply_thin(int M, int N, int K, const real *a, size_t a_row, size_t a_col,
                          const real *b, size_t b_row, real *c, size_t c_row, int accumulate) {
    _Alignas(64) real sums[THIN_SUMS], x[THIN_M * THIN_ROWS];
    int width = THIN_SUMS / M / VL * VL, from_memory = M == 1 && (double)N * K >= 1 << 17;
    for (int j0 = 0; j0 < N; j0 += width)
        for (int k0 = 0; k0 < K; k0 += KC) {
            int n = N - j0 < width ? N - j0 : width, k1 = K - k0 < KC ? K : k0 + KC;
            for (int i = 0; i < M; i++) memset(sums + i * width, 0, (size_t)n * sizeof *sums);
            for (int k = k0, rows; k < k1; k += rows) {
                rows = from_memory || k1 - k < THIN_ROWS ? 1 : THIN_ROWS;
                for (int i = 0; i < M; i++)
                    for (int r = 0; r < rows; r++)
                        x[i * rows + r] = a[(size_t)i * a_row + (size_t)(k + r) * a_col];
                const real *y = b + (size_t)k * b_row + j0;
                if (rows > 1) thin_rows(THIN_ROWS, M, n, x, y, b_row, sums, width);
                else thin_rows(1, M, n, x, y, b_row, sums, width);
            }
            for (int i = 0; i < M; i++) {
                real *out = c + (size_t)i * c_row + j0, *sum = sums + i * width;
                for (int j = 0; j < n; j++) out[j] = accumulate || k0 ? out[j] + sum[j] : sum[j];
            }
        }
}

/* The thin product on all threads. Best is to share out the blocks of k, each of which lies in one
   run of memory, and to add up their products afterwards, in the order of one thread; where they
   leave threads idle, the columns. */
static void multiply_thin_shared(int M, int N, int K, const real *a, size_t a_row, size_t a_col,
                                 const real *b, size_t b_row, real *c, size_t c_row, int accumulate,
                                 int threads) {
    int blocks = (K + KC - 1) / KC, share = ((N + threads - 1) / threads + VL - 1) / VL * VL;
    real *parts = packed_b; // (blocks, M, N)
    if (threads == 1) {
        multiply_thin(M, N, K, a, a_row, a_col, b, b_row, c, c_row, accumulate);
        return;
    }
    int uneven = blocks % threads && blocks < 4 * threads;
    if (uneven || (size_t)blocks * (size_t)M * (size_t)N > sizeof packed_b / sizeof *c) {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int j0 = 0; j0 < N; j0 += share)
            multiply_thin(M, N - j0 < share ? N - j0 : share, K, a, a_row, a_col, b + j0, b_row,
                          c + j0, c_row, accumulate);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int p = 0; p < blocks; p++)
            multiply_thin(M, N, p < blocks - 1 ? KC : K - p * KC, a + (size_t)(p * KC) * a_col,
                          a_row, a_col, b + (size_t)(p * KC) * b_row, b_row, parts + p * M * N,
                          (size_t)N, 0);
#pragma omp for schedule(static)
        for (int j0 = 0; j0 < N; j0 += share)
            for (int i = 0; i < M; i++)
                for (int p = 0; p < blocks; p++)
                    for (int j = j0; j < N && j < j0 + share; j++) {
                        real *out = &c[(size_t)i * c_row + (size_t)j],
                             part = parts[(p * M + i) * N + j];
                        *out = accumulate || p ? *out + part : part;
                    }
    }
}

void matmul(int M, int N, int K, const real *a, size_t a_row, size_t a_col, const real *b,
            size_t b_row, size_t b_col, real *c, size_t c_row, int accumulate) {
    int threads = omp_in_parallel() || (double)M * N * K < 1e5 ? 1 : omp_get_max_threads();
    if (M <= THIN_M && b_col == 1) {
        multiply_thin_shared(M, N, K, a, a_row, a_col, b, b_row, c, c_row, accumulate, threads);
        return;
    }
    /* As many blocks as the threads can share evenly: of rows, or of columns where rows are few. */
    int row_blocks = (M + MC - 1) / MC, column_blocks = (N + NC - 1) / NC;
    if (M >= threads * MC / 4) row_blocks = (row_blocks + threads - 1) / threads * threads;
    else column_blocks = (column_blocks + threads - 1) / threads * threads;
    int m = ((M + row_blocks - 1) / row_blocks + MR - 1) / MR * MR;
    int n = ((N + column_blocks - 1) / column_blocks + NR - 1) / NR * NR;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int j0 = 0; j0 < N; j0 += n)
        for (int i0 = 0; i0 < M; i0 += m)
            multiply_block(M - i0 < m ? M - i0 : m, N - j0 < n ? N - j0 : n, K,
                           a + (size_t)i0 * a_row, a_row, a_col, b + (size_t)j0 * b_col, b_row,
                           b_col, c + (size_t)i0 * c_row + j0, c_row, accumulate);
}

/* ==== 3 layers ==================================================================================
   Each layer is a plain function over raw pointers, its backward pass directly below it. In the
   backward passes dx stands for the derivative of the loss by x. Parallel loops run over rows,
   heads or blocks of fixed size that one thread owns: sums have one order for all thread counts. */

/* RMS norm (the released model's "layer norm": neither mean-centred nor shifted).
   n_i = x_i s g_i with s = 1 / sqrt(mean(x^2) + eps). */
void rms_forward(real *out, real *inv, const real *x, const real *gain, int rows, int d) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < rows; r++) {
        const real *in = x + (size_t)r * d;
        real *o = out + (size_t)r * d, squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int i = 0; i < d; i++) squares += in[i] * in[i];
        real s = 1 / (real)sqrt(squares / d + 1e-5);
        for (int i = 0; i < d; i++) o[i] = in[i] * s * gain[i];
        inv[r] = s;
    }
}

/* The output once more, from the inv that forward kept: cheaper than keeping the output. */
static void rms_again(real *out, const real *x, const real *inv, const real *gain, int rows,
                      int d) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < d; i++)
            out[(size_t)r * d + i] = x[(size_t)r * d + i] * inv[r] * gain[i];
}

/* dx_i += s g_i dn_i - x_i s^3 / d * sum_j(dn_j g_j x_j);  dg_i += sum over rows of dn_i x_i s.
   The second sum runs across rows: blocks of fixed size keep partial sums, added in order. */
enum { RMS_BLOCK = 64 };

size_t rms_partials(int rows) {
    return ((size_t)rows + RMS_BLOCK - 1) / RMS_BLOCK;
}

void rms_backward(real *dx, real *dgain, real *partial, const real *dout, const real *x,
                  const real *gain, const real *inv, int rows, int d) {
    int blocks = (int)rms_partials(rows);
#pragma omp parallel for schedule(static)
    for (int block = 0; block < blocks; block++) {
        real *sum = partial + (size_t)block * d;
        memset(sum, 0, (size_t)d * sizeof *sum);
        for (int r = block * RMS_BLOCK; r < rows && r < (block + 1) * RMS_BLOCK; r++) {
            const real *in = x + (size_t)r * d, *dn = dout + (size_t)r * d;
            real *dr = dx + (size_t)r * d, s = inv[r], dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int i = 0; i < d; i++) dot += dn[i] * gain[i] * in[i];
            dot *= s * s * s / d;
#pragma omp simd
            for (int i = 0; i < d; i++) {
                dr[i] += s * gain[i] * dn[i] - dot * in[i];
                sum[i] += dn[i] * in[i] * s;
            }
        }
    }
    for (int block = 0; block < blocks; block++)
        for (int i = 0; i < d; i++) dgain[i] += partial[(size_t)block * d + i];
}

/* Which row of wte is the content at position t: K is sos, -1 nothing (masked). */
static int content_at(const uint16_t *tokens, const uint8_t *mask, int t, int K) {
    if (mask) return mask[t] ? -1 : tokens[t];
    return t ? tokens[t - 1] : K;
}

void embed_forward(real *h, const uint16_t *tokens, const uint8_t *mask, const real *wte,
                   const real *wpe, int B, int T, int d, int K) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < B * T; r++) {
        int b = r / T, t = r % T;
        int row = content_at(tokens + (size_t)b * T, mask ? mask + (size_t)b * T : NULL, t, K);
        const real *position = wpe + (size_t)t * d;
        const real *content = wte + (size_t)(row < 0 ? 0 : row) * d;
        real *o = h + (size_t)r * d;
        if (row < 0) memcpy(o, position, (size_t)d * sizeof *o);
        else
            for (int i = 0; i < d; i++) o[i] = content[i] + position[i];
    }
}

/* dwte[content] += dh, dwpe[t] += dh. Rows of wte collide, so threads own columns instead. */
void embed_backward(real *dwte, real *dwpe, const real *dh, const uint16_t *tokens,
                    const uint8_t *mask, int B, int T, int d, int K) {
    enum { COLUMNS = 32 };
#pragma omp parallel for schedule(static)
    for (int i0 = 0; i0 < d; i0 += COLUMNS) {
        int n = d - i0 < COLUMNS ? d - i0 : COLUMNS;
        for (int r = 0; r < B * T; r++) {
            int b = r / T, t = r % T;
            int row = content_at(tokens + (size_t)b * T, mask ? mask + (size_t)b * T : NULL, t, K);
            const real *in = dh + (size_t)r * d + i0;
            real *position = dwpe + (size_t)t * d + i0;
            for (int i = 0; i < n; i++) position[i] += in[i];
            if (row < 0) continue;
            real *content = dwte + (size_t)row * d + i0;
            for (int i = 0; i < n; i++) content[i] += in[i];
        }
    }
}

/* Turn row[0..n) of scores into exp(score - max); returns their sum, and its log plus max in *lse. */
static real softmax_row(real *row, int n, real *lse) {
    real max = row_max(row, n), sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < n; j++) {
        row[j] = real_exp(row[j] - max);
        sum += row[j];
    }
    *lse = max + (real)log(sum);
    return sum;
}

/* Attention: P = softmax(Q K' / sqrt(hs)), out = P V, for each image and head; hs = d / H.

   P would be T x T. Only a band of it exists at a time (for each thread), and of a causal one only
   the rows that are seen (#): memory and time for the rest are never spent.

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
    real *rows[2];   // (T, hs) V; Q and dout
    real *panels[2]; // (T, hs) K; Q and dout, packed as A: panels of MR rows
    real *bands[2];  // (hs, NR) q'; k' and v'
    real *scores[2]; // (T, NR) p; p and ds
    real *k;         // (NR, hs) k packed as B: panels of NR columns
    real *product;   // (hs, NR) before it is transposed
    real *dq, *D;    // (T, hs), (T)
} Head;

/* From one panel of A to the next, with room for the surplus of the last row. */
static size_t head_panel(int hs) {
    return (size_t)hs * MR + 64 / sizeof(real);
}

/* A thread's part of the scratch; returns how many reals it takes. */
static size_t head_place(Head *s, real *base, int T, int hs) {
    size_t used = 0, n = (size_t)T * (size_t)hs;
    for (int i = 0; i < 2; i++) {
        s->rows[i] = carve(base, &used, n);
        s->panels[i] = carve(base, &used, (size_t)((T + MR - 1) / MR) * head_panel(hs));
        s->bands[i] = carve(base, &used, (size_t)hs * NR);
        s->scores[i] = carve(base, &used, (size_t)T * NR);
    }
    s->k = carve(base, &used, (size_t)((hs + NR - 1) / NR) * NR * NR);
    s->product = carve(base, &used, (size_t)hs * NR);
    s->dq = carve(base, &used, n);
    s->D = carve(base, &used, (size_t)T);
    return used;
}

size_t attention_scratch(int T, int hs) {
    Head s;
    return head_place(&s, NULL, T, hs);
}

static Head head_of_thread(real *scratch, int T, int hs) {
    Head s;
    head_place(&s, scratch + (size_t)omp_get_thread_num() * attention_scratch(T, hs), T, hs);
    return s;
}

/* rows (T, hs) = a head of x, whose rows lie `step` apart: too far for the processor to see them
   coming, so they are fetched ahead. panels: the same packed; NULL if that is not needed. */
static void head_gather(real *rows, real *panels, const real *x, size_t step, int T, int hs) {
    enum { AHEAD = 12 };
    for (int t = 0; t < T; t++) {
        for (int j = 0; j < hs && t + AHEAD < T; j += 64 / (int)sizeof *x)
            __builtin_prefetch(x + (size_t)(t + AHEAD) * step + j);
        memcpy(rows + (size_t)t * hs, x + (size_t)t * step, (size_t)hs * sizeof *x);
    }
    if (panels) pack_block(panels, MR, (int)head_panel(hs), T, hs, rows, (size_t)hs, 1);
}

/* scores (n, NR) = x (n, hs), in panels, times band (hs, NR). */
static void head_scores(real *scores, const real *panels, const real *band, int n, int hs) {
    for (int i = 0; i < n; i += MR, panels += head_panel(hs))
        tile_at(n - i < MR ? n - i : MR, NR, hs, panels, 1, MR, band, scores + i * NR, NR, 0);
}

/* out (columns, hs), its rows `step` apart, = p' x: p (n, NR), x (n, hs). */
static void head_sums(real *out, size_t step, int columns, const real *x, const real *p, int n,
                      int hs, real *product) {
    int tiles = (hs + MR - 1) / MR, height = (hs + tiles - 1) / tiles; // of even height
    for (int i = 0; i < hs; i += height)
        for (int k0 = 0; k0 < n; k0 += KC)
            tile_at(hs - i < height ? hs - i : height, NR, n - k0 < KC ? n - k0 : KC,
                    x + (size_t)k0 * hs + i, 1, (size_t)hs, p + k0 * NR, product + i * NR, NR,
                    k0 > 0);
    int whole = hs / VL * VL, j = 0;
    for (; j + VL <= columns; j += VL)
        for (int i = 0; i < whole; i += VL)
            transpose(out + (size_t)j * step + i, step, VL, product + i * NR + j, NR);
    for (int k = 0; k < columns; k++)
        for (int i = k < j ? whole : 0; i < hs; i++)
            out[(size_t)k * step + i] = product[i * NR + k];
}

/* Each column of p (n, NR) becomes exp(scale * (score - max)), its sum and the log-sum-exp of its
   scaled scores go to sum and lse. Column j does not see the rows after first + j. */
static void softmax_columns(real *p, int n, int first, real scale, real *sum, real *lse) {
    real max[NR];
    for (int i = first; i < n; i++)
        for (int j = 0; j < i - first; j++) p[i * NR + j] = -INFINITY;
    for (int j = 0; j < NR; j++) max[j] = p[j], sum[j] = 0;
    for (int i = 1; i < n; i++)
        for (int j = 0; j < NR; j++) max[j] = p[i * NR + j] > max[j] ? p[i * NR + j] : max[j];
    for (int i = 0; i < n; i++)
#pragma omp simd
        for (int j = 0; j < NR; j++) {
            real e = real_exp(scale * (p[i * NR + j] - max[j]));
            p[i * NR + j] = e;
            sum[j] += e;
        }
    for (int j = 0; j < NR; j++) lse[j] = scale * max[j] + (real)log(sum[j]);
}

/* A thread owns an image's head, here and in backward: of B * H threads all are busy. */
void attention_forward(real *out, real *lse, const real *qkv, int B, int T, int d, int H,
                       int causal, real *scratch, int threads) {
    (void)threads; // a pragma alone reads it
    int hs = d / H;
    size_t row = 3 * (size_t)d; // from one position of qkv to the next
    real scale = 1 / (real)sqrt(hs);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int head = 0; head < B * H; head++) {
        const real *q = qkv + (size_t)(head / H * T) * row + (size_t)(head % H * hs);
        real *o = out + (size_t)(head / H * T) * d + (size_t)(head % H * hs);
        real sum[NR], log_sum[NR];
        Head s = head_of_thread(scratch, T, hs);
        head_gather(s.rows[0], s.panels[0], q + d, row, T, hs); // K, then only its panels stay
        head_gather(s.rows[0], NULL, q + 2 * d, row, T, hs);    // V
        for (int i0 = 0; i0 < T; i0 += NR) {
            int queries = T - i0 < NR ? T - i0 : NR, keys = causal ? i0 + queries : T;
            real *o_band = o + (size_t)i0 * d;
            pack(s.bands[0], NR, queries, hs, q + i0 * row, row, 1);
            head_scores(s.scores[0], s.panels[0], s.bands[0], keys, hs);
            softmax_columns(s.scores[0], keys, causal ? i0 : T, scale, sum, log_sum);
            head_sums(o_band, (size_t)d, queries, s.rows[0], s.scores[0], keys, hs, s.product);
            for (int i = 0; i < queries; i++) {
                real inverse = 1 / sum[i];
                lse[(size_t)head * T + i0 + i] = log_sum[i];
                for (int j = 0; j < hs; j++) o_band[(size_t)i * d + j] *= inverse;
            }
        }
    }
}

/* p = exp(scale * score - lse) again, without a second softmax, and the gradient of the scores:
   dS = P * (dP - D), where D_i = sum_j(P_ij dP_ij) = dout_i . out_i. Row i of n sees the columns up
   to i - first, and none from `keys` on. */
static void softmax_columns_backward(real *p, real *ds, int n, int first, int keys, real scale,
                                     const real *lse, const real *D) {
    for (int i = 0; i < n; i++, p += NR, ds += NR) {
#pragma omp simd
        for (int j = 0; j < NR; j++) {
            p[j] = real_exp(scale * p[j] - lse[i]);
            ds[j] = scale * p[j] * (ds[j] - D[i]);
        }
        int seen = i - first + 1 < keys ? i - first + 1 : keys;
        for (int j = seen < 0 ? 0 : seen; j < NR; j++) p[j] = ds[j] = 0;
    }
}

/* dQ = scale dS K, dK = scale dS' Q, dV = P' dout (scale is in ds). A thread owns an image's head
   and adds its bands to dQ in their order; the first, seen by all queries, starts it. */
void attention_backward(real *dqkv, const real *dout, const real *qkv, const real *out,
                        const real *lse, int B, int T, int d, int H, int causal, real *scratch,
                        int threads) {
    (void)threads;
    int hs = d / H;
    size_t row = 3 * (size_t)d;
    real scale = 1 / (real)sqrt(hs);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int head = 0; head < B * H; head++) {
        size_t in = (size_t)(head / H * T) * row + (size_t)(head % H * hs);
        size_t at = (size_t)(head / H * T) * d + (size_t)(head % H * hs);
        Head s = head_of_thread(scratch, T, hs);
        real *p = s.scores[0], *ds = s.scores[1];
        head_gather(s.rows[0], s.panels[0], qkv + in, row, T, hs);
        head_gather(s.rows[1], s.panels[1], dout + at, (size_t)d, T, hs);
        for (int t = 0; t < T; t++) {
            const real *o = out + at + (size_t)t * d, *go = dout + at + (size_t)t * d;
            real dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int j = 0; j < hs; j++) dot += go[j] * o[j];
            s.D[t] = dot;
        }
        for (int j0 = 0; j0 < T; j0 += NR) {
            int keys = T - j0 < NR ? T - j0 : NR, i0 = causal ? j0 / MR * MR : 0, n = T - i0;
            size_t panel = (size_t)(i0 / MR) * head_panel(hs), i0_hs = (size_t)i0 * hs;
            const real *k = qkv + in + j0 * row + d, *v = k + d;
            real *dk = dqkv + in + j0 * row + d, *dv = dk + d;
            pack(s.bands[0], NR, keys, hs, k, row, 1);
            pack(s.bands[1], NR, keys, hs, v, row, 1);
            pack_block(s.k, NR, NR * NR, hs, keys, k, 1, row);
            head_scores(p, s.panels[0] + panel, s.bands[0], n, hs);
            head_scores(ds, s.panels[1] + panel, s.bands[1], n, hs);
            softmax_columns_backward(p, ds, n, causal ? j0 - i0 : -T, keys, scale,
                                     lse + (size_t)head * T + i0, s.D + i0);
            head_sums(dk, row, keys, s.rows[0] + i0_hs, ds, n, hs, s.product);
            head_sums(dv, row, keys, s.rows[1] + i0_hs, p, n, hs, s.product);
            for (int i = 0; i < n; i += MR)
                for (int j = 0; j < hs; j += NR)
                    tile_at(n - i < MR ? n - i : MR, hs - j < NR ? hs - j : NR, keys, ds + i * NR,
                            NR, 1, s.k + j * NR, s.dq + i0_hs + (size_t)(i * hs + j), (size_t)hs,
                            j0 > 0);
        }
        for (int t = 0; t < T; t++)
            memcpy(dqkv + in + (size_t)t * row, s.dq + (size_t)t * hs, (size_t)hs * sizeof *s.dq);
    }
}

/* The activation, "quick GELU": g = u sigmoid(1.702 u). */
void gelu_forward(real *g, const real *u, int rows, int width) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < rows; r++) {
        const real *in = u + (size_t)r * width;
        real *o = g + (size_t)r * width;
#pragma omp simd
        for (int i = 0; i < width; i++) o[i] = in[i] * (1 / (1 + real_exp((real)-1.702 * in[i])));
    }
}

/* g' = s + 1.702 u s (1 - s), s = sigmoid(1.702 u). s gives g too: one pass serves both. */
void gelu_backward(real *du, real *g, const real *u, int rows, int width) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < rows; r++) {
        const real *in = u + (size_t)r * width;
        real *o = g + (size_t)r * width, *dr = du + (size_t)r * width;
#pragma omp simd
        for (int i = 0; i < width; i++) {
            real s = 1 / (1 + real_exp((real)-1.702 * in[i]));
            o[i] = in[i] * s;
            dr[i] *= s + (real)1.702 * o[i] * (1 - s);
        }
    }
}

/* Cross entropy of a softmax: nll = log(sum_k exp(l_k)) - l_target. */
void softmax_loss_forward(real *probs, real *nll, const uint16_t *targets, int rows, int K) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < rows; r++) {
        real *p = probs + (size_t)r * K, logit = p[targets[r]], lse;
        real inverse = 1 / softmax_row(p, K, &lse);
        for (int k = 0; k < K; k++) p[k] *= inverse;
        nll[r] = lse - logit;
    }
}

/* d nll / d l_k = p_k - [k = target]. */
void softmax_loss_backward(real *probs, const uint16_t *targets, const real *weight, int rows,
                           int K) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < rows; r++) {
        real *p = probs + (size_t)r * K;
        p[targets[r]] -= 1;
        for (int k = 0; k < K; k++) p[k] *= weight[r];
    }
}

/* ==== 4 model ===================================================================================
   The network of the paper's section 2.3, as OpenAI released it. Two ideas: one table names every
   tensor, and counting, initialising, saving, loading, gradient checks and `info` all walk it; one
   function lays out the activations, and the same function run without memory measures them. */

enum { WTE, WPE, LN_1, C_ATTN, ATTN_PROJ, LN_2, C_FC, MLP_PROJ, LN_F, LM_HEAD, SCORE, N_KINDS };
enum { DIM_1, DIM_D, DIM_3D, DIM_4D, DIM_T, DIM_K, DIM_SOS, DIM_C }; // DIM_SOS: K + 1
enum { STD_ONES, STD_ZERO, STD_001, STD_002, STD_ATTN, STD_PROJ };

static const struct {
    const char *name; // "#" stands for the layer's number
    int rows, cols, std, has_bias;
} tensor_table[N_KINDS] = {
    [WTE] = {"transformer.wte.weight", DIM_SOS, DIM_D, STD_002, 0},
    [WPE] = {"transformer.wpe.weight", DIM_T, DIM_D, STD_001, 0},
    [LN_1] = {"transformer.h.#.ln_1.weight", DIM_1, DIM_D, STD_ONES, 0},
    [C_ATTN] = {"transformer.h.#.attn.c_attn.weight", DIM_D, DIM_3D, STD_ATTN, 1},
    [ATTN_PROJ] = {"transformer.h.#.attn.c_proj.weight", DIM_D, DIM_D, STD_PROJ, 1},
    [LN_2] = {"transformer.h.#.ln_2.weight", DIM_1, DIM_D, STD_ONES, 0},
    [C_FC] = {"transformer.h.#.mlp.c_fc.weight", DIM_D, DIM_4D, STD_002, 1},
    [MLP_PROJ] = {"transformer.h.#.mlp.c_proj.weight", DIM_4D, DIM_D, STD_002, 1},
    [LN_F] = {"transformer.ln_f.weight", DIM_1, DIM_D, STD_ONES, 0},
    [LM_HEAD] = {"lm_head.weight", DIM_K, DIM_D, STD_ZERO, 0},
    [SCORE] = {"score.weight", DIM_C, DIM_D, STD_ZERO, 0},
};

static int in_block(int kind) { // one for each layer
    return kind >= LN_1 && kind <= MLP_PROJ;
}

static size_t dimension(const Config *c, int dim) {
    size_t d = (size_t)c->n_embd;
    switch (dim) {
    case DIM_D: return d;
    case DIM_3D: return 3 * d;
    case DIM_4D: return 4 * d;
    case DIM_T: return (size_t)c->n_px * (size_t)c->n_px;
    case DIM_K: return (size_t)c->n_vocab;
    case DIM_SOS: return (size_t)c->n_vocab + 1;
    case DIM_C: return (size_t)c->n_class;
    default: return 1;
    }
}

static double initial_std(const Config *c, int std) {
    switch (std) {
    case STD_ZERO: return 0;
    case STD_001: return 0.01;
    case STD_002: return 0.02;
    case STD_ATTN: return 1 / sqrt(c->n_embd);
    case STD_PROJ: return 1 / sqrt((double)c->n_embd * c->n_layer);
    default: return -1;
    }
}

int config_check(const Config *c) {
    const struct {
        const char *name;
        int value, low, high;
    } fields[] = {
        {"n_px", c->n_px, 1, 256},        {"n_vocab", c->n_vocab, 2, 65535},
        {"n_embd", c->n_embd, 1, 16384},  {"n_head", c->n_head, 1, 1024},
        {"n_layer", c->n_layer, 1, 1024}, {"n_class", c->n_class, 0, 65535},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].value < fields[i].low || fields[i].value > fields[i].high)
            return fail("%s is %d, it must lie between %d and %d", fields[i].name, fields[i].value,
                        fields[i].low, fields[i].high);
    if (c->n_embd % c->n_head)
        return fail("n_embd %d is not divisible by n_head %d", c->n_embd, c->n_head);
    return 0;
}

static void tensor_add(Model *m, int kind, int layer) {
    const Config *c = &m->config;
    Tensor *t = &m->tensors[m->n_tensors++];
    const char *name = tensor_table[kind].name, *hash = strchr(name, '#');
    if (hash)
        snprintf(t->name, sizeof t->name, "%.*s%d%s", (int)(hash - name), name, layer, hash + 1);
    else snprintf(t->name, sizeof t->name, "%s", name);
    t->kind = kind;
    t->layer = layer;
    t->rank = tensor_table[kind].rows == DIM_1 ? 1 : 2;
    t->rows = dimension(c, tensor_table[kind].rows);
    t->cols = dimension(c, tensor_table[kind].cols);
    t->std = initial_std(c, tensor_table[kind].std);
    t->has_bias = tensor_table[kind].has_bias;
    t->offset = m->n_params;
    m->n_params += t->rows * t->cols;
}

int model_list(Model *m, Config config) {
    *m = (Model){.config = config};
    if (config_check(&config)) return -1;
    m->tensors = zalloc((size_t)N_KINDS * (size_t)config.n_layer, sizeof *m->tensors);
    if (!m->tensors) return -1;
    for (int kind = 0; kind < LN_1; kind++) tensor_add(m, kind, 0);
    for (int l = 0; l < config.n_layer; l++)
        for (int kind = LN_1; kind <= MLP_PROJ; kind++) tensor_add(m, kind, l);
    for (int kind = LN_F; kind < N_KINDS; kind++)
        if (kind != SCORE || config.n_class) tensor_add(m, kind, 0);
    return 0;
}

static int class_rename(Model *m, int k, const char *name) {
    char *copy = strdup(name);
    if (!copy) return fail("out of memory for class names");
    free(m->class_names[k]);
    m->class_names[k] = copy;
    return 0;
}

int model_init(Model *m, Config config) {
    if (model_list(m, config)) return -1;
    m->params = zalloc(m->n_params, sizeof(real));
    m->palette = zalloc((size_t)config.n_vocab * 3, sizeof(real));
    m->class_names = zalloc((size_t)config.n_class, sizeof *m->class_names);
    int bad = !m->params || !m->palette || !m->class_names;
    for (int k = 0; k < config.n_class && !bad; k++) {
        char number[16];
        snprintf(number, sizeof number, "%d", k);
        bad = class_rename(m, k, number);
    }
    if (bad) model_free(m);
    return bad ? -1 : 0;
}

void model_free(Model *m) {
    for (int k = 0; m->class_names && k < m->config.n_class; k++) free(m->class_names[k]);
    free(m->class_names);
    free(m->palette);
    free(m->tensors);
    free(m->params);
    *m = (Model){.n_tensors = 0};
}

void model_randomise(Model *m, uint64_t seed) {
    for (int i = 0; i < m->n_tensors; i++) {
        const Tensor *t = &m->tensors[i];
        real *w = m->params + t->offset;
#pragma omp parallel for schedule(static)
        for (size_t j = 0; j < t->rows * t->cols; j++)
            w[j] = t->std < 0
                       ? 1
                       : (real)(t->std * random_normal(seed, stream_of(FOR_INIT, (uint64_t)i), j));
    }
}

/* The place of a tensor in params, or in gradients, which are laid out alike. */
static real *at(const Model *m, real *base, int kind, int layer) {
    int per_block = MLP_PROJ - LN_1 + 1;
    int index = kind < LN_1      ? kind
                : in_block(kind) ? kind + layer * per_block
                                 : kind + (m->config.n_layer - 1) * per_block;
    return base + m->tensors[index].offset;
}

/* Activations. The names follow the data through a block; backward's are below the line. */
struct Activations {
    int threads, keep;
    size_t bytes;
    /* Of each layer, or of one at a time where less is kept. */
    real *h;     // (L + 1, B, T, d) block inputs; the last is the network's output
    real *inv_1; // (B, T)
    real *qkv;   // (B, T, 3d)
    real *lse;   // (B, H, T)
    real *att;   // (B, T, d)
    real *a;     // (B, T, d) input plus attention
    real *inv_2; // (B, T)
    real *u;     // (B, T, 4d)
    /* Of the pass. */
    real *n;        // (B, T, d) the normalised input of whatever matmul comes next
    real *g;        // (B, T, 4d)
    real *inv_f;    // (B, T)
    real *logits;   // (B, T, K), then probabilities, then their gradient
    real *nll;      // (B, T)
    real *weight;   // (B, T) of each position in the loss
    real *features; // (B, d) mean of n^L over positions
    real *classes;  // (B, C) like logits
    real *scratch;  // (threads, attention_scratch(T, d / H))
    /* Of backward. */
    real *dh;      // (B, T, d)
    real *dn;      // (B, T, d)
    real *wide;    // (B, T, 4d) gradient of u; then of qkv (3d) and att (d)
    real *partial; // (rms_partials(B T), d)
};

/* Lay out the activations behind their own struct; returns the bytes that takes. */
static size_t activations_place(Activations *s, real *base, const Config *c, int B, int keep) {
    size_t T = dimension(c, DIM_T), d = (size_t)c->n_embd, rows = (size_t)B * T, used = 0;
    size_t layers = keep == KEEP_ALL ? (size_t)c->n_layer : 1;
    size_t inputs = keep == KEEP_NOTHING ? 1 : (size_t)c->n_layer + 1;
    size_t K = (size_t)c->n_vocab, C = (size_t)c->n_class;
    s->h = carve(base, &used, inputs * rows * d);
    s->inv_1 = carve(base, &used, layers * rows);
    s->qkv = carve(base, &used, layers * rows * 3 * d);
    s->lse = carve(base, &used, layers * rows * (size_t)c->n_head);
    s->att = carve(base, &used, layers * rows * d);
    s->a = carve(base, &used, layers * rows * d);
    s->inv_2 = carve(base, &used, layers * rows);
    s->u = carve(base, &used, layers * rows * 4 * d);
    s->n = carve(base, &used, rows * d);
    s->g = carve(base, &used, rows * 4 * d);
    s->inv_f = carve(base, &used, rows);
    s->logits = carve(base, &used, rows * K);
    s->nll = carve(base, &used, rows);
    s->weight = carve(base, &used, rows);
    s->features = carve(base, &used, (size_t)B * d);
    s->classes = carve(base, &used, (size_t)B * C);
    s->scratch =
        carve(base, &used, (size_t)s->threads * attention_scratch((int)T, (int)d / c->n_head));
    if (keep != KEEP_NOTHING) {
        s->dh = carve(base, &used, rows * d);
        s->dn = carve(base, &used, rows * d);
        s->wide = carve(base, &used, rows * 4 * d);
        s->partial = carve(base, &used, rms_partials((int)rows) * d);
    }
    return used * sizeof(real);
}

enum { HEADER = (sizeof(Activations) + 63) / 64 * 64 };

size_t activations_bytes(const Config *c, int B, int keep) {
    Activations s = {.threads = threads_get()};
    return HEADER + activations_place(&s, NULL, c, B, keep);
}

static int pass_check(const Config *c, int B) {
    if ((double)B * c->n_px * c->n_px <= INT_MAX) return 0;
    return fail("a pass over %d images of %d x %d is too large", B, c->n_px, c->n_px);
}

Activations *activations_new(const Config *c, int B, int keep) {
    if (pass_check(c, B)) return NULL;
    Activations *s = zalloc(activations_bytes(c, B, keep), 1);
    if (!s) return NULL;
    s->threads = threads_get();
    s->keep = keep;
    activations_place(s, (real *)((char *)s + HEADER), c, B, keep);
    return s;
}

/* One layer's activations: those pointers advanced to its slot. */
static Activations layer_slot(const Activations *s, const Config *c, int l, int B) {
    size_t T = dimension(c, DIM_T), d = (size_t)c->n_embd, rows = (size_t)B * T;
    size_t slot = s->keep == KEEP_ALL ? (size_t)l : 0;
    size_t input = s->keep == KEEP_NOTHING ? 0 : (size_t)l;
    Activations view = *s;
    view.h += input * rows * d;
    view.inv_1 += slot * rows;
    view.qkv += slot * rows * 3 * d;
    view.lse += slot * rows * (size_t)c->n_head;
    view.att += slot * rows * d;
    view.a += slot * rows * d;
    view.inv_2 += slot * rows;
    view.u += slot * rows * 4 * d;
    return view;
}

/* out (rows, n_out) (+)= x (rows, n_in) w (n_in, n_out); its backward pass has two halves. */
static void linear_forward(real *out, const real *x, const real *w, int rows, int n_in, int n_out,
                           int accumulate) {
    matmul(rows, n_out, n_in, x, (size_t)n_in, 1, w, (size_t)n_out, 1, out, (size_t)n_out,
           accumulate);
}

/* dx = dout w' */
static void linear_backward_input(real *dx, const real *dout, const real *w, int rows, int n_in,
                                  int n_out) {
    matmul(rows, n_in, n_out, dout, (size_t)n_out, 1, w, 1, (size_t)n_out, dx, (size_t)n_in, 0);
}

/* dw += x' dout */
static void linear_backward_weight(real *dw, const real *dout, const real *x, int rows, int n_in,
                                   int n_out) {
    matmul(n_in, n_out, rows, x, 1, (size_t)n_in, dout, (size_t)n_out, 1, dw, (size_t)n_out, 1);
}

/* A block, up to what backward needs of it: a = h + attn(rms(h)), u = rms(a) W_fc. */
static void block_inner(const Model *m, const Activations *s, int l, int B) {
    const Config *c = &m->config;
    int T = c->n_px * c->n_px, d = c->n_embd, rows = B * T;
    real *w = m->params;
    rms_forward(s->n, s->inv_1, s->h, at(m, w, LN_1, l), rows, d);
    linear_forward(s->qkv, s->n, at(m, w, C_ATTN, l), rows, d, 3 * d, 0);
    attention_forward(s->att, s->lse, s->qkv, B, T, d, c->n_head, c->objective == OBJECTIVE_AR,
                      s->scratch, s->threads);
    memcpy(s->a, s->h, (size_t)rows * (size_t)d * sizeof *s->a);
    linear_forward(s->a, s->att, at(m, w, ATTN_PROJ, l), rows, d, d, 1);
    rms_forward(s->n, s->inv_2, s->a, at(m, w, LN_2, l), rows, d);
    linear_forward(s->u, s->n, at(m, w, C_FC, l), rows, d, 4 * d, 0);
}

/* out (rows, d) = a + gelu(u) W_proj: the block's output, the next one's input. */
static void block_forward(const Model *m, const Activations *s, int l, int B, real *out) {
    int d = m->config.n_embd, rows = B * m->config.n_px * m->config.n_px;
    block_inner(m, s, l, B);
    gelu_forward(s->g, s->u, rows, 4 * d);
    memcpy(out, s->a, (size_t)rows * (size_t)d * sizeof *out);
    linear_forward(out, s->g, at(m, m->params, MLP_PROJ, l), rows, 4 * d, d, 1);
}

/* s->dh goes in as the gradient of the block's output and comes out as that of its input. */
static void block_backward(const Model *m, const Activations *s, int l, int B, real *grads) {
    const Config *c = &m->config;
    int T = c->n_px * c->n_px, d = c->n_embd, rows = B * T;
    const real *ln_1 = at(m, m->params, LN_1, l), *ln_2 = at(m, m->params, LN_2, l);
    real *du = s->wide, *dqkv = s->wide, *datt = s->wide + 3 * (size_t)rows * (size_t)d;

    linear_backward_input(du, s->dh, at(m, m->params, MLP_PROJ, l), rows, 4 * d, d);
    gelu_backward(du, s->g, s->u, rows, 4 * d);
    linear_backward_weight(at(m, grads, MLP_PROJ, l), s->dh, s->g, rows, 4 * d, d);
    rms_again(s->n, s->a, s->inv_2, ln_2, rows, d);
    linear_backward_weight(at(m, grads, C_FC, l), du, s->n, rows, d, 4 * d);
    linear_backward_input(s->dn, du, at(m, m->params, C_FC, l), rows, d, 4 * d);
    rms_backward(s->dh, at(m, grads, LN_2, l), s->partial, s->dn, s->a, ln_2, s->inv_2, rows, d);

    linear_backward_input(datt, s->dh, at(m, m->params, ATTN_PROJ, l), rows, d, d);
    linear_backward_weight(at(m, grads, ATTN_PROJ, l), s->dh, s->att, rows, d, d);
    attention_backward(dqkv, datt, s->qkv, s->att, s->lse, B, T, d, c->n_head,
                       c->objective == OBJECTIVE_AR, s->scratch, s->threads);
    rms_again(s->n, s->h, s->inv_1, ln_1, rows, d);
    linear_backward_weight(at(m, grads, C_ATTN, l), dqkv, s->n, rows, d, 3 * d);
    linear_backward_input(s->dn, dqkv, at(m, m->params, C_ATTN, l), rows, d, 3 * d);
    rms_backward(s->dh, at(m, grads, LN_1, l), s->partial, s->dn, s->h, ln_1, s->inv_1, rows, d);
}

/* h^0 of B images. */
static void model_embed(const Model *m, const Activations *s, const uint16_t *tokens,
                        const uint8_t *mask, int B) {
    const Config *c = &m->config;
    embed_forward(s->h, tokens, mask, at(m, m->params, WTE, 0), at(m, m->params, WPE, 0), B,
                  c->n_px * c->n_px, c->n_embd, c->n_vocab);
}

/* From h^l to h^(l+1). */
static void model_layer(const Model *m, const Activations *s, int l, int B) {
    Activations view = layer_slot(s, &m->config, l, B);
    block_forward(m, &view, l, B, layer_slot(s, &m->config, l + 1, B).h);
}

const real *model_forward(const Model *m, Activations *s, const uint16_t *tokens,
                          const uint8_t *mask, int B) {
    const Config *c = &m->config;
    int T = c->n_px * c->n_px, d = c->n_embd, L = c->n_layer;
    model_embed(m, s, tokens, mask, B);
    for (int l = 0; l < L; l++) model_layer(m, s, l, B);
    rms_forward(s->n, s->inv_f, layer_slot(s, c, L, B).h, at(m, m->params, LN_F, 0), B * T, d);
    return s->n;
}

real *model_logits(const Model *m, Activations *s, int B) {
    const Config *c = &m->config;
    int rows = B * c->n_px * c->n_px;
    linear_backward_input(s->logits, s->n, at(m, m->params, LM_HEAD, 0), rows, c->n_vocab,
                          c->n_embd); // n lm_head': lm_head is stored (out, in)
    return s->logits;
}

/* From s->dn, the gradient of n^L, back to the embeddings. */
static void model_backward(const Model *m, Activations *s, const uint16_t *tokens,
                           const uint8_t *mask, int B, real *grads) {
    const Config *c = &m->config;
    int T = c->n_px * c->n_px, d = c->n_embd, L = c->n_layer;
    memset(s->dh, 0, (size_t)B * (size_t)T * (size_t)d * sizeof *s->dh);
    rms_backward(s->dh, at(m, grads, LN_F, 0), s->partial, s->dn, layer_slot(s, c, L, B).h,
                 at(m, m->params, LN_F, 0), s->inv_f, B * T, d);
    for (int l = L - 1; l >= 0; l--) {
        Activations view = layer_slot(s, c, l, B);
        if (s->keep == KEEP_INPUTS) block_inner(m, &view, l, B);
        block_backward(m, &view, l, B, grads);
    }
    embed_backward(at(m, grads, WTE, 0), at(m, grads, WPE, 0), s->dh, tokens, mask, B, T, d,
                   c->n_vocab);
}

/* ==== 5 objectives ==============================================================================
   Section 2.1 of the paper: L_AR predicts each pixel from those before it, L_BERT the masked pixels
   from the others; section 2.2: L_CLF predicts the class from the mean of n^L over positions. All
   three are cross entropies on top of one forward pass, and their gradients meet in n^L. */

void bert_mask(uint8_t *mask, int T, double probability, uint64_t seed, uint64_t index) {
    uint64_t stream = stream_of(FOR_MASK, index), counter = 0;
    int masked = 0;
    while (!masked)
        for (int t = 0; t < T; t++) {
            mask[t] = random_uniform(seed, stream, counter++) < probability;
            masked += mask[t];
        }
}

/* L_GEN: the sum over images of the mean nll of their positions (for BERT: of the masked ones).
   With grads: writes s->dn, adds to lm_head's gradient. */
static double generative_loss(const Model *m, Activations *s, const Batch *batch, double scale,
                              real *grads) {
    const Config *c = &m->config;
    int T = c->n_px * c->n_px, d = c->n_embd, K = c->n_vocab, rows = batch->B * T;
    double loss = 0;
    softmax_loss_forward(model_logits(m, s, batch->B), s->nll, batch->tokens, rows, K);
    for (int b = 0; b < batch->B; b++) {
        const uint8_t *mask = batch->mask ? batch->mask + (size_t)b * (size_t)T : NULL;
        real *nll = s->nll + (size_t)b * (size_t)T, *weight = s->weight + (size_t)b * (size_t)T;
        double sum = 0;
        int counted = 0;
        for (int t = 0; t < T; t++)
            if (!mask || mask[t]) {
                sum += nll[t];
                counted++;
            }
        for (int t = 0; t < T; t++) weight[t] = !mask || mask[t] ? (real)(scale / counted) : 0;
        loss += counted ? sum / counted : 0;
    }
    if (grads) {
        const real *lm_head = at(m, m->params, LM_HEAD, 0); // (K, d)
        softmax_loss_backward(s->logits, batch->tokens, s->weight, rows, K);
        linear_forward(s->dn, s->logits, lm_head, rows, K, d, 0);
        linear_backward_weight(at(m, grads, LM_HEAD, 0), s->n, s->logits, rows, K, d);
    }
    return loss;
}

/* Features of B images out of n (B, T, d), added times scale to out, whose rows lie out_row apart:
   the mean over positions (d), or those of all positions side by side (T, d). */
static void pool_add(real *out, size_t out_row, const real *n, int B, int T, int d, int pool,
                     double scale) {
    size_t step = pool == POOL_NONE ? (size_t)d : 0;
    real weight = (real)(pool == POOL_NONE ? scale : scale / T);
#pragma omp parallel for schedule(static)
    for (int b = 0; b < B; b++)
        for (int t = 0; t < T; t++) {
            const real *in = n + ((size_t)b * (size_t)T + (size_t)t) * (size_t)d;
            real *o = out + (size_t)b * out_row + (size_t)t * step;
            for (int i = 0; i < d; i++) o[i] += weight * in[i];
        }
}

/* Class logits (B, C) = features (B, d) score', features = mean over positions of n^L. */
static void classify(const Model *m, Activations *s, int B) {
    int T = m->config.n_px * m->config.n_px, d = m->config.n_embd;
    memset(s->features, 0, (size_t)B * (size_t)d * sizeof *s->features);
    pool_add(s->features, (size_t)d, s->n, B, T, d, POOL_MEAN, 1);
    linear_backward_input(s->classes, s->features, at(m, m->params, SCORE, 0), B, m->config.n_class,
                          d); // f score': score is stored (out, in)
}

/* Cross entropy of one picture's class logits p (C), which become probabilities. */
static double class_loss(real *p, int C, int label, int *correct) {
    real logit = p[label], lse;
    int best = 0;
    for (int k = 1; k < C; k++)
        if (p[k] > p[best]) best = k;
    *correct += best == label;
    real inverse = 1 / softmax_row(p, C, &lse);
    for (int k = 0; k < C; k++) p[k] *= inverse;
    return lse - logit;
}

/* L_CLF of the pictures that have a label. With grads: adds to s->dn and to score's gradient. B and
   C are small: plain loops. */
static double classifier_loss(const Model *m, Activations *s, const Batch *batch, double scale,
                              real *grads, int *correct) {
    const Config *c = &m->config;
    int T = c->n_px * c->n_px, d = c->n_embd, C = c->n_class;
    double loss = 0;
    classify(m, s, batch->B);
    for (int b = 0; b < batch->B; b++) {
        real *p = s->classes + (size_t)b * (size_t)C; // becomes the logits' gradient
        int label = batch->labels[b];
        if (label >= 0) {
            loss += class_loss(p, C, label, correct);
            p[label] -= 1;
        }
        for (int k = 0; k < C; k++) p[k] = label < 0 ? 0 : p[k] * (real)scale;
    }
    if (grads) {
        const real *score = at(m, m->params, SCORE, 0);
        linear_backward_weight(at(m, grads, SCORE, 0), s->features, s->classes, batch->B, C, d);
        linear_forward(s->features, s->classes, score, batch->B, C, d, 0); // df
#pragma omp parallel for schedule(static)
        for (int r = 0; r < batch->B * T; r++) {
            const real *df = s->features + (size_t)(r / T) * (size_t)d;
            for (int i = 0; i < d; i++) s->dn[(size_t)r * (size_t)d + (size_t)i] += df[i] / (real)T;
        }
    }
    return loss;
}

Losses objective(const Model *m, Activations *s, const Batch *batch, double gen_weight,
                 double clf_weight, double scale, real *grads) {
    Losses losses = {0, 0, 0};
    int T = m->config.n_px * m->config.n_px;
    model_forward(m, s, batch->tokens, batch->mask, batch->B);
    if (gen_weight != 0) losses.gen = generative_loss(m, s, batch, gen_weight * scale, grads);
    else if (grads)
        memset(s->dn, 0, (size_t)batch->B * (size_t)T * (size_t)m->config.n_embd * sizeof *s->dn);
    if (clf_weight != 0)
        losses.clf = classifier_loss(m, s, batch, clf_weight * scale, grads, &losses.correct);
    if (grads) model_backward(m, s, batch->tokens, batch->mask, batch->B, grads);
    return losses;
}

/* ==== 6 optimiser ===============================================================================
   Adam with the paper's settings (appendix): beta2 0.95, no weight decay. The work is reading and
   writing memory, so one pass does everything, down to clearing the gradient. */

void adam_step(real *params, real *grads, real *first, real *second, size_t n, int step,
               double lr) {
    enum { BLOCK = 4096 }; // fixed, so that vector and remainder loops split alike for all threads
    const real beta1 = (real)0.9, beta2 = (real)0.95, eps = (real)1e-8;
    const real rate = (real)(lr / (1 - pow(0.9, step)));
    const real unbias = (real)(1 / sqrt(1 - pow(0.95, step)));
    size_t blocks = (n + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (size_t block = 0; block < blocks; block++) {
        size_t end = (block + 1) * BLOCK < n ? (block + 1) * BLOCK : n;
#pragma omp simd
        for (size_t i = block * BLOCK; i < end; i++) {
            real g = grads[i];
            first[i] = beta1 * first[i] + (1 - beta1) * g;
            second[i] = beta2 * second[i] + (1 - beta2) * g * g;
            params[i] -= rate * first[i] / (square_root(second[i]) * unbias + eps);
            grads[i] = 0;
        }
    }
}

double learning_rate(int step, int steps, int warmup, double peak) {
    if (step < warmup) return peak * (step + 1) / warmup;
    double done = (double)(step - warmup) / (steps > warmup ? steps - warmup : 1);
    return peak * 0.5 * (1 + cos(3.14159265358979323846 * done));
}

/* ==== 7 palette =================================================================================
   Pictures become sequences of colour numbers (paper, section 3.2: a 9-bit palette by k-means cuts
   the sequence to a third of what separate channels would take). The one idea: an image set has far
   fewer colours than pixels, so k-means runs over distinct colours, weighted by their counts. Sums
   of bytes are whole numbers, exact in 64 bits, so threads may add them in any order. */

/* The centres as the search wants them: planes of red, green and blue. */
typedef struct {
    int K;
    real *plane; // (3, K)
} Centres;

/* The centre nearest to a colour; the first of several. *distance: the square of it. */
static int nearest(const Centres *c, const real *colour, real *distance) {
    enum { CHUNK = 128 };
    const real *red = c->plane, *green = red + c->K, *blue = green + c->K;
    real best = -INFINITY, closeness[CHUNK]; // minus the squared distance
    int index = 0;
    for (int k0 = 0; k0 < c->K; k0 += CHUNK) {
        int n = c->K - k0 < CHUNK ? c->K - k0 : CHUNK;
        for (int k = 0; k < n; k++) {
            real r = colour[0] - red[k0 + k], g = colour[1] - green[k0 + k];
            real b = colour[2] - blue[k0 + k];
            closeness[k] = -(r * r + g * g + b * b);
        }
        real most = row_max(closeness, n);
        if (most <= best) continue;
        best = most;
        index = k0;
        while (closeness[index - k0] != most) index++;
    }
    *distance = -best;
    return index;
}

/* Distinct colours with their counts. */
typedef struct {
    int n;
    real *plane;     // (3, n) in byte units
    uint32_t *count; // (n)
    real *distance;  // (n) squared, to the nearest centre
    uint16_t *owner; // (n) that centre
} Colours;

static void colours_free(Colours *c) {
    free(c->plane);
    free(c->count);
    free(c->distance);
    free(c->owner);
}

enum { ALL_COLOURS = 1 << 24 }; // of three bytes

static int colours_count(Colours *c, const uint8_t *rgb, size_t n) {
    *c = (Colours){.n = 0};
    uint32_t *table = zalloc(ALL_COLOURS, sizeof *table);
    if (!table) return -1;
    for (size_t i = 0; i < n; i++) table[get_be(rgb + 3 * i, 3)]++;
    for (int i = 0; i < ALL_COLOURS; i++) c->n += table[i] != 0;
    c->plane = zalloc((size_t)c->n * 3, sizeof *c->plane);
    c->count = zalloc((size_t)c->n, sizeof *c->count);
    c->distance = zalloc((size_t)c->n, sizeof *c->distance);
    c->owner = zalloc((size_t)c->n, sizeof *c->owner);
    int bad = !c->plane || !c->count || !c->distance || !c->owner;
    for (int i = 0, k = 0; i < ALL_COLOURS && !bad; i++) {
        if (!table[i]) continue;
        for (int j = 0; j < 3; j++)
            c->plane[(size_t)j * c->n + k] = (real)(i >> (16 - 8 * j) & 255);
        c->count[k++] = table[i];
    }
    free(table);
    return bad ? -1 : 0;
}

/* Greedy k-means++ (Arthur and Vassilvitskii 2007): each next centre is the best of a few colours
   drawn with probability count * distance^2, distance to the centres so far. Colours that are
   centres have distance 0 and are not drawn again. All of this is whole numbers, whose sums are
   exact in doubles and so the same in any order. Blocks of colours keep theirs (mass), so that a
   draw looks into one block only. */
enum { PALETTE_BLOCK = 1024, MOST_TRIALS = 16 };

static int draw_colour(const Colours *c, const double *mass, double uniform) {
    int blocks = (c->n + PALETTE_BLOCK - 1) / PALETTE_BLOCK, block = 0, chosen = 0;
    double total = 0, at = 0;
    for (int i = 0; i < blocks; i++) total += mass[i];
    double goal = total * uniform;
    while (block + 1 < blocks && at + mass[block] <= goal) at += mass[block++];
    for (int i = block * PALETTE_BLOCK; i < c->n && at <= goal; i++) {
        if (c->distance[i] > 0) chosen = i;
        at += c->count[i] * (double)c->distance[i];
    }
    return chosen;
}

/* The mass of the block of colours that begins at `start` were colour `chosen` a centre; unless
   `owner` is -1 it is made one, by that number, and the block's distances and owners follow. */
static double block_mass(const Colours *c, int start, int chosen, int owner) {
    int n = c->n - start < PALETTE_BLOCK ? c->n - start : PALETTE_BLOCK;
    const real *red = c->plane + start, *green = red + c->n, *blue = green + c->n;
    real r0 = c->plane[chosen], g0 = c->plane[c->n + chosen], b0 = c->plane[2 * c->n + chosen];
    real *distance = c->distance + start;
    const uint32_t *count = c->count + start;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) {
        real r = red[i] - r0, g = green[i] - g0, b = blue[i] - b0, square = r * r + g * g + b * b;
        sum += count[i] * (double)(square < distance[i] ? square : distance[i]);
    }
    if (owner < 0) return sum;
    for (int i = 0; i < n; i++) {
        real r = red[i] - r0, g = green[i] - g0, b = blue[i] - b0, square = r * r + g * g + b * b;
        c->owner[start + i] = square < distance[i] ? (uint16_t)owner : c->owner[start + i];
        distance[i] = square < distance[i] ? square : distance[i];
    }
    return sum;
}

/* Of the drawn colours the one that, as a centre, would leave the least mass. */
static int best_of(const Colours *c, const int *drawn, int trials) {
    double left[MOST_TRIALS] = {0};
    int best = 0;
#pragma omp parallel for schedule(static) reduction(+ : left)
    for (int start = 0; start < c->n; start += PALETTE_BLOCK)
        for (int trial = 0; trial < trials; trial++) // within a block: it stays in the cache
            left[trial] += block_mass(c, start, drawn[trial], -1);
    for (int trial = 1; trial < trials; trial++)
        if (left[trial] < left[best]) best = trial;
    return drawn[best];
}

static void choose_centres(const Centres *centres, const Colours *c, uint64_t seed, double *mass) {
    int K = centres->K, drawn[MOST_TRIALS];
    for (int i = 0; i < c->n; i++) {
        c->distance[i] = 1e6; // beyond all others: the first is drawn by count alone and takes all
        mass[i / PALETTE_BLOCK] += 1e6 * c->count[i];
    }
    for (int k = 0; k < K; k++) {
        int trials = k ? 2 + (int)log(K) : 1;
        for (int trial = 0; trial < trials; trial++) {
            uint64_t stream = stream_of(FOR_PALETTE, (uint64_t)trial);
            drawn[trial] = draw_colour(c, mass, random_uniform(seed, stream, (uint64_t)k));
        }
        int chosen = best_of(c, drawn, trials);
        for (int j = 0; j < 3; j++) centres->plane[j * K + k] = c->plane[(size_t)j * c->n + chosen];
#pragma omp parallel for schedule(static)
        for (int start = 0; start < c->n; start += PALETTE_BLOCK)
            mass[start / PALETTE_BLOCK] = block_mass(c, start, chosen, k);
    }
}

/* The centres around each centre, nearest first: (K, NEAR) of them. */
enum { NEAR = 48 };

typedef struct {
    real distance; // not squared
    int centre;
} Neighbour;

static int nearer(const void *a, const void *b) {
    const Neighbour *x = a, *y = b;
    return (x->distance > y->distance) - (x->distance < y->distance);
}

static real squared_distance(const Centres *c, int k, const real *colour) {
    real r = colour[0] - c->plane[k], g = colour[1] - c->plane[c->K + k];
    real b = colour[2] - c->plane[2 * c->K + k];
    return r * r + g * g + b * b;
}

static void find_neighbours(const Centres *c, Neighbour *near, Neighbour *room) {
    int K = c->K;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < K; k++) {
        Neighbour *all = room + (size_t)omp_get_thread_num() * (size_t)K;
        const real colour[3] = {c->plane[k], c->plane[K + k], c->plane[2 * K + k]};
        for (int j = 0; j < K; j++)
            all[j] =
                (Neighbour){j == k ? INFINITY : square_root(squared_distance(c, j, colour)), j};
        qsort(all, (size_t)K, sizeof *all, nearer);
        memcpy(near + (size_t)k * NEAR, all, (size_t)(K < NEAR ? K : NEAR) * sizeof *all);
    }
}

/* Give each colour to its nearest centre, the first of several; returns how many changed hands.
   By the triangle inequality no centre farther from the owner than twice the colour's distance to
   it can be nearer: of hundreds of centres a few neighbours are left to look at (Elkan 2003). */
static int assign(const Centres *centres, const Colours *c, const Neighbour *near) {
    int changed = 0, known = centres->K < NEAR ? centres->K : NEAR;
#pragma omp parallel for schedule(dynamic, PALETTE_BLOCK) reduction(+ : changed)
    for (int i = 0; i < c->n; i++) {
        const real colour[3] = {c->plane[i], c->plane[c->n + i], c->plane[2 * c->n + i]};
        const Neighbour *list = near + (size_t)c->owner[i] * NEAR;
        int best = c->owner[i], j = 0;
        real least = squared_distance(centres, best, colour);
        real reach = 2 * square_root(least) * (real)1.0001; // rounding may not hide a tie
        for (; j < known && list[j].distance <= reach; j++) {
            real square = squared_distance(centres, list[j].centre, colour);
            if (square > least || (square == least && list[j].centre > best)) continue;
            least = square;
            best = list[j].centre;
        }
        if (j == known && known < centres->K) best = nearest(centres, colour, &least);
        changed += best != c->owner[i];
        c->owner[i] = (uint16_t)best;
        c->distance[i] = least;
    }
    return changed;
}

/* Move each centre to the mean of its pixels; one without pixels stays. */
static void move_centres(const Centres *centres, const Colours *c, uint64_t *sums) {
    int K = centres->K;
    memset(sums, 0, 4 * (size_t)K * sizeof *sums); // (K, 4): red, green, blue, pixels
    for (int i = 0; i < c->n; i++) {
        uint64_t *sum = sums + 4 * (size_t)c->owner[i];
        for (int j = 0; j < 3; j++)
            sum[j] += (uint64_t)c->plane[(size_t)j * c->n + i] * c->count[i];
        sum[3] += c->count[i];
    }
    for (int k = 0; k < K; k++)
        for (int j = 0; j < 3 && sums[4 * k + 3]; j++)
            centres->plane[j * K + k] = (real)((double)sums[4 * k + j] / (double)sums[4 * k + 3]);
}

int palette_build(real *palette, int K, const uint8_t *rgb, size_t n, uint64_t seed, int iterations,
                  double *inertia) {
    Colours c;
    if (!n) return fail("a palette needs pixels");
    if (colours_count(&c, rgb, n)) {
        colours_free(&c);
        return -1;
    }
    Centres centres = {.K = K < c.n ? K : c.n};
    size_t count = (size_t)centres.K, threads = (size_t)omp_get_max_threads();
    centres.plane = zalloc(3 * count, sizeof *centres.plane);
    uint64_t *sums = zalloc(4 * count, sizeof *sums);
    double *mass = zalloc((size_t)c.n / PALETTE_BLOCK + 1, sizeof *mass);
    Neighbour *near = zalloc(count, NEAR * sizeof *near);
    Neighbour *room = zalloc(count * threads, sizeof *room);
    int ready = centres.plane && sums && mass && near && room, changed = 1;
    if (ready) choose_centres(&centres, &c, seed, mass);
    for (int i = 0; i < iterations && changed && ready; i++) {
        move_centres(&centres, &c, sums);
        find_neighbours(&centres, near, room);
        changed = assign(&centres, &c, near);
    }
    for (int k = 0; k < centres.K && ready; k++)
        for (int j = 0; j < 3; j++)
            palette[3 * k + j] = centres.plane[j * centres.K + k] / (real)127.5 - 1;
    for (int i = 0; inertia && i < c.n && ready; i++)
        *inertia = (i ? *inertia : 0) + (double)c.distance[i] * c.count[i];
    free(room);
    free(near);
    free(mass);
    free(sums);
    free(centres.plane);
    colours_free(&c);
    return ready ? centres.K : -1;
}

int palette_index(uint16_t *tokens, const uint8_t *rgb, size_t n, const real *palette, int K) {
    enum { BLOCK = 4096 };
    Centres centres = {.K = K, .plane = zalloc(3 * (size_t)K, sizeof *centres.plane)};
    if (!centres.plane) return -1;
    for (int k = 0; k < K; k++)
        for (int j = 0; j < 3; j++) centres.plane[j * K + k] = palette[3 * k + j];
#pragma omp parallel for schedule(static)
    for (size_t block = 0; block < (n + BLOCK - 1) / BLOCK; block++)
        for (size_t i = block * BLOCK; i < n && i < (block + 1) * BLOCK; i++) {
            real colour[3], distance;
            for (size_t j = 0; j < 3; j++) colour[j] = rgb[3 * i + j] / (real)127.5 - 1;
            tokens[i] = (uint16_t)nearest(&centres, colour, &distance);
        }
    free(centres.plane);
    return 0;
}

void palette_colours(uint8_t *rgb, const uint16_t *tokens, size_t n, const real *palette) {
    for (size_t i = 0; i < 3 * n; i++) {
        real v = (palette[3 * (size_t)tokens[i / 3] + i % 3] + 1) * (real)127.5 + (real)0.5;
        rgb[i] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
    }
}

/* ==== 8 images ==================================================================================
   From files to pictures of n_px x n_px (paper, sections 3.1 and 3.2). The idea to take away: the
   well-known sets are all files of equally long records, so one table says how they differ and one
   loop reads them. Pictures shrink as they come in; memory holds the result and one record. */

enum { MAX_SIDE = 32768, MAX_PX = 256, MAX_PICTURES = 10000000 };

/* Resizing. An output pixel is a weighted mean of source pixels, its weights one factor per axis.
   In whole numbers: a line of n source pixels that becomes px is measured in units of which a
   source pixel has px and an output pixel n (up: twice as many, so that centres are whole). */

/* The source pixels [*from, *to) that count for output pixel i. */
static void resize_range(int i, int n, int px, int *from, int *to) {
    if (n >= px) {
        *from = i * n / px;
        *to = ((i + 1) * n + px - 1) / px;
    } else {
        *from = ((2 * i + 1) * n - px) / (2 * px); // rounds towards 0: never before the first pixel
        *to = *from + 2 < n ? *from + 2 : n;
    }
}

/* How much source pixel x counts for output pixel i. Down: the length that both cover. Up: falls
   in a line from the output's centre to zero at the next source pixel's; beyond the last centre
   one pixel is left, and dividing by the sum of weights gives it the whole. */
static int resize_weight(int x, int i, int n, int px) {
    if (n >= px) {
        int from = x * px > i * n ? x * px : i * n;
        int to = (x + 1) * px < (i + 1) * n ? (x + 1) * px : (i + 1) * n;
        return to - from;
    }
    int away = abs((2 * i + 1) * n - (2 * x + 1) * px);
    return away < 2 * px ? 2 * px - away : 0;
}

int image_resize(const uint8_t *rgb, int width, int height, uint8_t *out, int px) {
    if (px < 1 || px > MAX_PX) return fail("cannot resize to %d pixels: not 1 to %d", px, MAX_PX);
    if (width < 1 || width > MAX_SIDE || height < 1 || height > MAX_SIDE)
        return fail("cannot resize %d x %d pixels: not 1 to %d", width, height, MAX_SIDE);
    int n = width < height ? width : height;
    rgb += ((size_t)((height - n) / 2) * (size_t)width + (size_t)((width - n) / 2)) * 3;
    for (int i = 0; i < px; i++) {
        for (int j = 0; j < px; j++) {
            uint64_t sum[3] = {0}, total = 0; // at most 255 * n * n
            int y, y1, x0, x1;
            resize_range(i, n, px, &y, &y1);
            resize_range(j, n, px, &x0, &x1);
            for (; y < y1; y++) {
                uint64_t row_weight = (uint64_t)resize_weight(y, i, n, px);
                for (int x = x0; x < x1; x++) {
                    uint64_t weight = row_weight * (uint64_t)resize_weight(x, j, n, px);
                    const uint8_t *pixel = rgb + ((size_t)y * (size_t)width + (size_t)x) * 3;
                    for (int c = 0; c < 3; c++) sum[c] += weight * pixel[c];
                    total += weight;
                }
            }
            for (int c = 0; c < 3; c++) *out++ = (uint8_t)((sum[c] + total / 2) / total);
        }
    }
    return 0;
}

/* PPM and PGM. As Netpbm has it, '#' starts a comment anywhere in the header, and counts, with all
   up to the end of its line, as that line end. */
static int pnm_char(FILE *f) {
    int c = getc(f);
    if (c == '#')
        while (c != '\n' && c != '\r' && c != EOF) c = getc(f);
    return c;
}

static int is_space(int c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* One of the header's numbers, 1 to limit, and the one white space behind it; -1: fail. */
static int pnm_number(FILE *f, const char *path, const char *what, int limit) {
    int64_t v = 0;
    int c = pnm_char(f), digits = 0;
    while (is_space(c)) c = pnm_char(f);
    for (; c >= '0' && c <= '9'; c = pnm_char(f), digits++)
        if (v < INT64_MAX / 100) v = v * 10 + c - '0';
    if (!digits || !is_space(c))
        return fail("%s: the %s in its header is no number with white space behind", path, what);
    if (v < 1 || v > limit)
        return fail("%s: %s %lld is not 1 to %d", path, what, (long long)v, limit);
    return (int)v;
}

/* The picture (height, width, 3) of an open file, for the caller to free; NULL: fail. */
static uint8_t *pnm_read(FILE *f, const char *path, int *width, int *height) {
    int p = getc(f), kind = getc(f), space = pnm_char(f);
    if (p != 'P' || (kind != '5' && kind != '6') || !is_space(space))
        return fail("%s: wrong magic number, neither P6 (binary PPM) nor P5 (PGM)", path), NULL;
    int maxval = 0;
    if ((*width = pnm_number(f, path, "width", MAX_SIDE)) < 0) return NULL;
    if ((*height = pnm_number(f, path, "height", MAX_SIDE)) < 0) return NULL;
    if ((maxval = pnm_number(f, path, "maxval", 65535)) < 0) return NULL;

    int channels = kind == '6' ? 3 : 1, bytes = maxval > 255 ? 2 : 1; // of a sample, big-endian
    size_t w = (size_t)*width, h = (size_t)*height, row_size = w * (size_t)(channels * bytes);
    int64_t left = file_size(f) - ftell(f);
    if (left < (int64_t)(h * row_size)) { // before memory is taken for what is not there
        fail("%s: truncated, %lld bytes of pixels instead of %zu", path, (long long)left,
             h * row_size);
        return NULL;
    }
    uint8_t *rgb = zalloc(h * w, 3), *row = zalloc(row_size, 1);
    int bad = !rgb || !row;
    for (size_t y = 0; y < h && !bad; y++) {
        if (fread(row, 1, row_size, f) != row_size) bad = fail("%s: cannot read row %zu", path, y);
        for (size_t i = 0; i < w * 3 && !bad; i++) {
            size_t at = channels == 3 ? i : i / 3;
            int v = (int)get_be(row + at * (size_t)bytes, bytes);
            if (v > maxval) bad = fail("%s: a sample of %d in row %zu, above maxval", path, v, y);
            rgb[y * w * 3 + i] = (uint8_t)((v * 255 + maxval / 2) / maxval);
        }
    }
    free(row);
    if (bad) {
        free(rgb);
        rgb = NULL;
    }
    return rgb;
}

int image_read(const char *path, uint8_t *rgb, int px) {
    FILE *f = file_open(path);
    if (!f) return -1;
    int width, height;
    uint8_t *picture = pnm_read(f, path, &width, &height);
    fclose(f);
    int result = picture ? image_resize(picture, width, height, rgb, px) : -1;
    free(picture);
    return result;
}

/* Data sets. */

void dataset_free(Dataset *data) {
    Images *sets[] = {&data->train, &data->test};
    for (int s = 0; s < 2; s++) {
        free(sets[s]->rgb);
        free(sets[s]->tokens);
        free(sets[s]->labels);
    }
    for (int c = 0; c < data->n_class; c++) free(data->class_names[c]);
    free(data->class_names);
    memset(data, 0, sizeof *data);
}

static int images_make(Images *set, int64_t n, int px, int labelled) {
    if (n > MAX_PICTURES) return fail("%lld pictures, not up to %d", (long long)n, MAX_PICTURES);
    set->n = (int)n;
    set->px = px;
    set->rgb = zalloc((size_t)n, (size_t)px * (size_t)px * 3);
    set->labels = labelled ? zalloc((size_t)n, sizeof *set->labels) : NULL;
    return set->rgb && (set->labels || !labelled) ? 0 : -1;
}

static uint8_t *images_at(const Images *set, int64_t i) {
    return set->rgb + (size_t)i * (size_t)set->px * (size_t)set->px * 3;
}

/* Add a class; returns its number. */
static int class_add(Dataset *data, const char *name) {
    char **names = realloc(data->class_names, (size_t)(data->n_class + 1) * sizeof *names);
    if (!names) return fail("out of memory for class names");
    data->class_names = names;
    names[data->n_class] = strdup(name);
    return names[data->n_class] ? data->n_class++ : fail("out of memory for class names");
}

/* Class names, one to a line of the file at path; where there is no such file, n numbers. */
static int class_names_read(Dataset *data, const char *path, int n) {
    int bad = 0;
    if (access(path, F_OK)) {
        for (int c = 0; c < n && !bad; c++) {
            char number[16];
            snprintf(number, sizeof number, "%d", c);
            bad = class_add(data, number) < 0;
        }
        return bad ? -1 : 0;
    }
    FILE *f = file_open(path);
    if (!f) return -1;
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    while (!bad && (length = getline(&line, &room, f)) >= 0) {
        while (length > 0 && is_space(line[length - 1])) length--;
        line[length] = 0;
        if (*line) bad = class_add(data, line) < 0;
    }
    free(line);
    fclose(f);
    if (!bad && !data->n_class) bad = fail("%s: empty, no class names", path);
    return bad ? -1 : 0;
}

/* Sets of records. */

enum { MAX_PARTS = 5 };

typedef struct {
    const char *name;
    const char *pictures[2][MAX_PARTS]; // files of train and of test; only the first must be there
    const char *labels[2];              // file of the first's labels; NULL: in its records
    const char *classes;                // file of class names
    int side;                           // of a picture; 0: an IDX header says
    int channels;                       // planes of a picture: r, g, b, or one, grey
    int by_column;                      // a plane's pixels go down columns, not along rows
    int label_bytes;                    // labels in front of each picture; the last one counts
    int first_label;                    // number of the first class
    int n_class;                        // where no file has the names
} Layout;

// clang-format off
static const Layout layouts[] = {
    {.name = "CIFAR-10", .classes = "batches.meta.txt", .n_class = 10,
     .pictures = {{"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin",
                   "data_batch_5.bin"}, {"test_batch.bin"}},
     .side = 32, .channels = 3, .label_bytes = 1},
    {.name = "CIFAR-100", .classes = "fine_label_names.txt", .n_class = 100,
     .pictures = {{"train.bin"}, {"test.bin"}},
     .side = 32, .channels = 3, .label_bytes = 2}, // coarse, fine
    {.name = "STL-10", .classes = "class_names.txt", .n_class = 10,
     .pictures = {{"train_X.bin", "unlabeled_X.bin"}, {"test_X.bin"}},
     .labels = {"train_y.bin", "test_y.bin"},
     .side = 96, .channels = 3, .by_column = 1, .first_label = 1},
    {.name = "IDX", .classes = "class_names.txt", .n_class = 10,
     .pictures = {{"train-images-idx3-ubyte"}, {"t10k-images-idx3-ubyte"}},
     .labels = {"train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"},
     .channels = 1},
};
// clang-format on

/* Is the file there, as it is or packed as its makers publish it? */
static int is_there(const char *dir, const char *name) {
    char path[PATH_SIZE], packed[PATH_SIZE + 3];
    if (path_join(path, dir, name)) return 0;
    snprintf(packed, sizeof packed, "%s.gz", path);
    return access(path, F_OK) == 0 || access(packed, F_OK) == 0;
}

/* An open file of n records of `size` bytes: pictures (height, width), or bare labels (1, 1). */
typedef struct {
    FILE *f;
    char path[PATH_SIZE];
    int64_t n;
    size_t size;
    int height, width;
} Records;

/* IDX: two zero bytes, 8 for unsigned bytes, the number of dimensions, then each, big-endian. */
static int idx_header(Records *r, int dims) {
    uint8_t header[16] = {0};
    size_t size = 4 + 4 * (size_t)dims;
    if (fread(header, 1, size, r->f) != size)
        return fail("%s: truncated, shorter than its header of %zu bytes", r->path, size);
    unsigned magic = (unsigned)get_be(header, 4), wanted = 0x800 + (unsigned)dims;
    if (magic != wanted)
        return fail("%s: wrong magic number 0x%08x instead of 0x%08x", r->path, magic, wanted);
    r->n = (int64_t)get_be(header + 4, 4);
    if (dims == 1) return 0;
    int64_t height = (int64_t)get_be(header + 8, 4), width = (int64_t)get_be(header + 12, 4);
    if (height < 1 || height > MAX_SIDE || width < 1 || width > MAX_SIDE)
        return fail("%s: pictures of %lld x %lld pixels, not 1 to %d", r->path, (long long)width,
                    (long long)height, MAX_SIDE);
    r->height = (int)height;
    r->width = (int)width;
    return 0;
}

/* Open a file of pictures (dims 3) or of labels (dims 1), and hold its size against the layout. */
static int records_open(Records *r, const Layout *layout, const char *dir, const char *name,
                        int dims) {
    if (path_join(r->path, dir, name)) return -1;
    if (access(r->path, F_OK) && is_there(dir, name))
        return fail("%s is packed: run gunzip -k %s/*.gz", r->path, dir);
    if (!(r->f = file_open(r->path))) return -1;
    int64_t bytes = file_size(r->f), header = layout->side ? 0 : 4 + 4 * dims;
    if (bytes < 1) return fail("%s: empty", r->path);
    r->height = r->width = dims == 3 ? layout->side : 1;
    if (header && idx_header(r, dims)) return -1;
    r->size = (size_t)r->height * (size_t)r->width;
    if (dims == 3) r->size = r->size * (size_t)layout->channels + (size_t)layout->label_bytes;
    if (!header) r->n = bytes / (int64_t)r->size;
    if (!header && bytes % (int64_t)r->size)
        return fail("%s: %lld bytes is no multiple of a record's %zu", r->path, (long long)bytes,
                    r->size);
    if (r->n < 1 || r->n > MAX_PICTURES)
        return fail("%s: %lld records, not 1 to %d", r->path, (long long)r->n, MAX_PICTURES);
    int64_t promised = header + r->n * (int64_t)r->size; // n < 2^24, size < 2^32
    if (bytes != promised)
        return fail("%s: %s, %lld bytes instead of the %lld that its header promises", r->path,
                    bytes < promised ? "truncated" : "too long", (long long)bytes,
                    (long long)promised);
    return 0;
}

/* A record's planes, (channels, height, width) or the last two swapped, to (height, width, 3). */
static void planes_to_rgb(const Layout *layout, const Records *r, const uint8_t *planes,
                          uint8_t *rgb) {
    size_t h = (size_t)r->height, w = (size_t)r->width;
    for (size_t c = 0; c < 3; c++) {
        const uint8_t *plane = planes + (layout->channels == 3 ? c * h * w : 0);
        for (size_t y = 0; y < h; y++)
            for (size_t x = 0; x < w; x++)
                rgb[(y * w + x) * 3 + c] = plane[layout->by_column ? x * h + y : y * w + x];
    }
}

/* All records of one open file, into set from picture `at` on; their labels come from the file of
   labels, where one is given, or from the records, or there are none. */
static int records_read(Images *set, int64_t at, const Layout *layout, const Records *r,
                        const Records *labels, int n_class) {
    uint8_t *record = zalloc(r->size, 1);
    uint8_t *rgb = zalloc((size_t)r->height * (size_t)r->width, 3);
    int bad = !record || !rgb;
    for (int64_t i = 0; i < r->n && !bad; i++) {
        if (fread(record, 1, r->size, r->f) != r->size) {
            bad = fail("%s: cannot read record %lld", r->path, (long long)i);
            break;
        }
        planes_to_rgb(layout, r, record + layout->label_bytes, rgb);
        bad = image_resize(rgb, r->width, r->height, images_at(set, at + i), set->px);
        set->labels[at + i] = -1;
        if (!labels && !layout->label_bytes) continue;
        int value = labels ? getc(labels->f) : record[layout->label_bytes - 1];
        int label = value - layout->first_label;
        set->labels[at + i] = label;
        if (value < 0 || label < 0 || label >= n_class)
            bad = fail("%s: record %lld (counted from 0) has label %d; the %d classes are %d to %d",
                       labels ? labels->path : r->path, (long long)i, value, n_class,
                       layout->first_label, layout->first_label + n_class - 1);
    }
    free(record);
    free(rgb);
    return bad ? -1 : 0;
}

/* One split: open all its files and add up their records, take the memory, read them. */
static int split_read(Images *set, const Layout *layout, const char *dir, int split, int px,
                      int n_class) {
    Records part[MAX_PARTS] = {0}, labels = {0};
    const char *const *name = layout->pictures[split];
    int64_t n = 0, at = 0;
    int bad = 0;
    for (int k = 0; k < MAX_PARTS && name[k] && !bad; k++) {
        if (k > 0 && !is_there(dir, name[k])) continue;
        bad = records_open(&part[k], layout, dir, name[k], 3);
        n += part[k].n;
    }
    if (!bad && layout->labels[split]) {
        bad = records_open(&labels, layout, dir, layout->labels[split], 1);
        if (!bad && labels.n != part[0].n)
            bad = fail("%s: %lld labels, but %s has %lld pictures", labels.path,
                       (long long)labels.n, part[0].path, (long long)part[0].n);
    }
    if (!bad) bad = images_make(set, n, px, 1);
    for (int k = 0; k < MAX_PARTS; k++) {
        if (!part[k].f) continue;
        const Records *with = k == 0 && labels.f ? &labels : NULL;
        if (!bad) bad = records_read(set, at, layout, &part[k], with, n_class);
        at += part[k].n;
        fclose(part[k].f);
    }
    if (labels.f) fclose(labels.f);
    return bad ? -1 : 0;
}

static int layout_read(Dataset *data, const Layout *layout, const char *dir, int px) {
    char path[PATH_SIZE];
    if (path_join(path, dir, layout->classes)) return -1;
    if (class_names_read(data, path, layout->n_class)) return -1;
    if (split_read(&data->train, layout, dir, 0, px, data->n_class)) return -1;
    return split_read(&data->test, layout, dir, 1, px, data->n_class);
}

/* Folders of pictures: first the list of all files, then their pixels. */

typedef struct {
    char *path;
    int label, test;
} Found;

typedef struct {
    Found *file;
    int n, room;
} Tree;

static int tree_add(Tree *tree, const char *path, int label, int test) {
    if (tree->n == MAX_PICTURES) return fail("%s: more than %d pictures", path, MAX_PICTURES);
    if (tree->n == tree->room) {
        int room = 2 * tree->room + 64;
        Found *file = realloc(tree->file, (size_t)room * sizeof *file);
        if (!file) return fail("out of memory for the names of %d pictures", room);
        tree->file = file;
        tree->room = room;
    }
    char *copy = strdup(path);
    if (!copy) return fail("out of memory for the names of %d pictures", tree->n);
    tree->file[tree->n++] = (Found){copy, label, test};
    return 0;
}

static int is_visible(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_picture(const char *name) {
    size_t n = strlen(name);
    return n > 4 && (!strcmp(name + n - 4, ".ppm") || !strcmp(name + n - 4, ".pgm"));
}

/* The number of a class: training adds it, in test it has to be there. */
static int class_number(Dataset *data, const char *name, const char *dir, int test) {
    if (!test) return class_add(data, name);
    for (int c = 0; c < data->n_class; c++)
        if (!strcmp(data->class_names[c], name)) return c;
    return fail("%s: no training pictures are of this class", dir);
}

/* List the pictures in dir, which are of one class; or, class_name NULL, of none, and then its
   sub-folders' too, each a class. */
static int tree_scan(Tree *tree, Dataset *data, const char *dir, const char *class_name, int test) {
    struct dirent **entry;
    int n = scandir(dir, &entry, is_visible, by_name), label = -1, bad = 0;
    if (n < 0) return fail("cannot read the folder %s: %s", dir, strerror(errno));
    for (int i = 0; i < n; i++) {
        char path[PATH_SIZE];
        const char *name = entry[i]->d_name;
        if (!bad) bad = path_join(path, dir, name);
        if (!bad && is_picture(name)) {
            if (class_name && label < 0) label = class_number(data, class_name, dir, test);
            bad = (class_name && label < 0) || tree_add(tree, path, label, test);
        } else if (!bad && !class_name && is_folder(path)) {
            bad = tree_scan(tree, data, path, name, test);
        }
        free(entry[i]);
    }
    free(entry);
    return bad ? -1 : 0;
}

/* Bring those of a class's n pictures to the front of index that are not for training: a share in
   percent, at least one of two or more, the same ones each time. Returns how many. */
static int hold_out(int *index, int n, int percent, int label) {
    int held = (percent * n + 50) / 100;
    random_shuffle(index, n, 0, stream_of(FOR_SPLIT, (uint64_t)(label + 1)));
    return held == 0 && n > 1 ? 1 : held;
}

/* Mark 15 % of each class as test. A class's files stand together in the list. */
static int tree_split(Tree *tree) {
    for (int from = 0, to; from < tree->n; from = to) {
        int label = tree->file[from].label;
        for (to = from; to < tree->n && tree->file[to].label == label;) to++;
        int n = to - from, *index = zalloc((size_t)n, sizeof *index);
        if (!index) return -1;
        for (int i = 0; i < n; i++) index[i] = from + i;
        int n_test = hold_out(index, n, 15, label);
        for (int i = 0; i < n_test; i++) tree->file[index[i]].test = 1;
        free(index);
    }
    return 0;
}

/* List all pictures in dir and say which are for test. */
static int tree_find(Tree *tree, Dataset *data, const char *dir) {
    char train[PATH_SIZE], test[PATH_SIZE];
    if (path_join(train, dir, "train") || path_join(test, dir, "test")) return -1;
    if (!is_folder(train) && !is_folder(test))
        return tree_scan(tree, data, dir, NULL, 0) ? -1 : tree_split(tree);
    return tree_scan(tree, data, train, NULL, 0) ? -1 : tree_scan(tree, data, test, NULL, 1);
}

static int tree_read(const Tree *tree, Dataset *data, const char *dir, int px) {
    int n_test = 0, at[2] = {0};
    for (int i = 0; i < tree->n; i++) {
        n_test += tree->file[i].test;
        if (data->n_class && tree->file[i].label < 0)
            return fail("%s: lies beside the classes' folders, not in one", tree->file[i].path);
    }
    if (n_test == 0 || n_test == tree->n)
        return fail("%s: %d pictures for training and %d for testing, not at least one of each",
                    dir, tree->n - n_test, n_test);
    if (images_make(&data->train, tree->n - n_test, px, data->n_class > 0)) return -1;
    if (images_make(&data->test, n_test, px, data->n_class > 0)) return -1;
    for (int i = 0; i < tree->n; i++) {
        const Found *file = &tree->file[i];
        Images *set = file->test ? &data->test : &data->train;
        int k = at[file->test]++;
        if (image_read(file->path, images_at(set, k), px)) return -1;
        if (set->labels) set->labels[k] = file->label;
    }
    return 0;
}

/* Find out what lies in dir, and read it. */
static int recognise(Dataset *data, const char *dir, int px) {
    const Layout *found = NULL;
    for (size_t k = 0; k < sizeof layouts / sizeof *layouts; k++) {
        const Layout *layout = &layouts[k];
        if (!is_there(dir, layout->pictures[0][0]) && !is_there(dir, layout->pictures[1][0]))
            continue;
        if (found)
            return fail("%s: two data sets in one folder, %s and %s", dir, found->name,
                        layout->name);
        found = layout;
    }
    Tree tree = {0};
    int result = tree_find(&tree, data, dir);
    if (found && tree.n) {
        result = fail("%s: two data sets in one folder, %s and PPM pictures", dir, found->name);
    } else if (found) { // a sub-folder that cannot be searched is no concern of this set's
        result = layout_read(data, found, dir, px);
    } else if (!result && tree.n) {
        result = tree_read(&tree, data, dir, px);
    } else if (!result) {
        result = fail("%s: no data set found; looked for data_batch_1.bin (CIFAR-10), train.bin "
                      "(CIFAR-100), train_X.bin (STL-10), train-images-idx3-ubyte (IDX) and "
                      "*.ppm or *.pgm, also in sub-folders",
                      dir);
    }
    for (int i = 0; i < tree.n; i++) free(tree.file[i].path);
    free(tree.file);
    return result;
}

int dataset_read(Dataset *data, const char *dir, int n_px) {
    memset(data, 0, sizeof *data);
    if (n_px < 1 || n_px > MAX_PX) return fail("n_px %d is not 1 to %d", n_px, MAX_PX);
    if (!is_folder(dir)) return fail("%s: no such folder", dir);
    int result = recognise(data, dir, n_px);
    if (result) dataset_free(data);
    return result;
}

/* Augmentation. */

void image_flip(const uint16_t *in, uint16_t *out, int px) {
    for (int y = 0; y < px; y++)
        for (int x = 0; x < px; x++) out[y * px + x] = in[y * px + px - 1 - x];
}

/* Where pixel i, counted from the picture's edge, comes from: -1 mirrors to 1, px to px - 2. */
static int reflect(int i, int px) {
    if (i < 0) return -i;
    return i < px ? i : 2 * (px - 1) - i;
}

void image_crop_padded(const uint16_t *in, uint16_t *out, int px, int pad, int dy, int dx) {
    for (int y = 0; y < px; y++)
        for (int x = 0; x < px; x++)
            out[y * px + x] = in[reflect(y + dy - pad, px) * px + reflect(x + dx - pad, px)];
}

/* Tokens take two bytes where a pixel had three: they move into the front of the same memory. */
int images_quantise(Images *set, const real *palette, int K) {
    enum { BLOCK = 1 << 16 };
    size_t n = (size_t)set->n * (size_t)set->px * (size_t)set->px;
    uint16_t *block = zalloc(BLOCK, sizeof *block), *tokens = (uint16_t *)(void *)set->rgb;
    if (!block) return -1;
    for (size_t i = 0; i < n; i += BLOCK) {
        size_t count = n - i < BLOCK ? n - i : BLOCK;
        if (palette_index(block, set->rgb + 3 * i, count, palette, K)) {
            free(block);
            return -1;
        }
        memcpy(tokens + i, block, count * sizeof *block);
    }
    free(block);
    tokens = realloc(tokens, n * sizeof *tokens);
    set->tokens = tokens ? tokens : (uint16_t *)(void *)set->rgb;
    set->rgb = NULL;
    return 0;
}

int labels_split(const Images *set, int n_class, int per_class, uint64_t seed, int draw,
                 uint8_t *part) {
    int *index = zalloc((size_t)set->n, sizeof *index), bad = !index;
    memset(part, PART_NONE, (size_t)set->n);
    for (int c = 0; c < n_class && !bad; c++) {
        int n = 0;
        for (int i = 0; i < set->n; i++)
            if (set->labels[i] == c) index[n++] = i;
        int held = hold_out(index, n, 10, c), left = n - held;
        if (left < per_class) {
            bad = fail("class %d has %d labels besides those for validation, not %d", c, left,
                       per_class);
        } else if (per_class) {
            random_shuffle(index + held, left, seed,
                           stream_of(FOR_LABELS, (uint64_t)draw << 16 | (uint64_t)c));
            left = per_class;
        }
        for (int i = 0; i < held + left; i++)
            part[index[i]] = i < held ? PART_VALIDATION : PART_TRAIN;
    }
    free(index);
    return bad ? -1 : 0;
}

int images_split(Images *set, Images *held, int n_class, int per_class, uint64_t seed) {
    size_t T = (size_t)set->px * (size_t)set->px;
    uint8_t *part = zalloc((size_t)set->n, sizeof *part);
    int n = 0, n_held = 0, bad = !part || labels_split(set, n_class, per_class, seed, 0, part);
    *held = (Images){.px = set->px};
    for (int i = 0; i < set->n && !bad; i++) n_held += part[i] == PART_VALIDATION;
    if (!bad) {
        held->tokens = zalloc((size_t)n_held * T, sizeof *held->tokens);
        held->labels = zalloc((size_t)n_held, sizeof *held->labels);
        bad = !held->tokens || !held->labels;
    }
    for (int i = 0; i < set->n && !bad; i++) {
        if (part[i] == PART_NONE) continue;
        Images *to = part[i] == PART_VALIDATION ? held : set;
        int k = to == held ? held->n++ : n++; // never beyond i
        memmove(to->tokens + (size_t)k * T, set->tokens + (size_t)i * T, T * sizeof *to->tokens);
        to->labels[k] = set->labels[i];
    }
    if (!bad) set->n = n;
    if (!bad && (!n || !n_held))
        bad = fail("%d pictures left for training and %d for validation", n, n_held);
    free(part);
    if (!bad) return 0;
    free(held->tokens);
    free(held->labels);
    *held = (Images){.px = set->px};
    return -1;
}

/* ==== 9 checkpoints =============================================================================
   A model directory is a Hugging Face ImageGPT directory: weights in a safetensors file, the rest
   in JSON. Both come from strangers, so the readers trust nothing: whatever the format does not
   allow is refused, by a sentence that names the place, before anything is sized or read by it.

   JSON first: the reader serves config.json, preprocessor_config.json and the header of every
   safetensors file. It makes one allocation. Each value but the outermost follows a bracket or a
   comma, and no string is longer than its source: so counting brackets and commas bounds the nodes,
   and the text's length bounds the strings, before the first byte is parsed. */

enum { JSON_DEPTH = 64, JSON_BYTES = 100000000 }; // the latter is safetensors' limit for headers

typedef struct {
    const char *name;             // of the text, for errors
    const char *start, *at, *end; // the text, and how far it has been read
    Json *nodes;                  // the next free node
    char *strings;                // the next free byte
} JsonReader;

static int json_fail(const JsonReader *r, const char *what) {
    long line = 1, column = 1;
    for (const char *p = r->start; p < r->at; p++) {
        column++;
        if (*p == '\n') line++, column = 1;
    }
    return fail("%s: line %ld, column %ld: %s", r->name, line, column, what);
}

static int json_accept(JsonReader *r, const char *word) {
    size_t n = strlen(word);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, word, n)) return 0;
    r->at += n;
    return 1;
}

static void json_space(JsonReader *r) {
    while (r->at < r->end && *r->at && strchr(" \t\n\r", *r->at)) r->at++;
}

/* The length of the UTF-8 character at p, 1 to 4 bytes; 0 if there is none: a stray or missing
   continuation, a form longer than needed, a surrogate, a code above 10FFFF. */
static int utf8_length(const char *p, const char *end) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    uint8_t c = (uint8_t)*p;
    int n = c < 0x80 ? 1 : c < 0xc0 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf8 ? 4 : 0;
    if (n < 2) return n;
    if (end - p < n) return 0;
    uint32_t code = c & (0x7fu >> n);
    for (int i = 1; i < n; i++) {
        if (((uint8_t)p[i] & 0xc0) != 0x80) return 0;
        code = code << 6 | ((uint8_t)p[i] & 0x3f);
    }
    return code < least[n] || code > 0x10ffff || code >> 11 == 0xd800 >> 11 ? 0 : n;
}

/* The four digits of a \u escape; a negative number where they are not there. */
static int32_t json_hex(JsonReader *r) {
    static const char digits[] = "0123456789abcdefABCDEF";
    int32_t code = 0;
    for (int i = 0; i < 4; i++, r->at++) {
        const char *digit = r->at < r->end && *r->at ? strchr(digits, *r->at) : NULL;
        if (!digit) return json_fail(r, "expected four hexadecimal digits after \\u");
        int32_t value = (int32_t)(digit - digits);
        code = code * 16 + (value < 16 ? value : value - 6);
    }
    return code;
}

/* What follows a backslash. */
static int json_escape(JsonReader *r) {
    static const char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    if (!json_accept(r, "u")) {
        const char *letter = r->at < r->end && *r->at ? strchr(letters, *r->at) : NULL;
        if (!letter) return json_fail(r, "expected one of \"\\/bfnrtu after a backslash");
        r->at++;
        *r->strings++ = meant[letter - letters];
        return 0;
    }
    int32_t code = json_hex(r);
    if (code < 0) return -1;
    if (code == 0) return json_fail(r, "\\u0000 in a string");
    if (code >= 0xd800 && code < 0xe000) { // half of a pair, which gives 20 bits
        if (code >= 0xdc00 || !json_accept(r, "\\") || !json_accept(r, "u"))
            return json_fail(r, "half of a surrogate pair");
        int32_t low = json_hex(r);
        if (low < 0) return -1;
        if (low < 0xdc00 || low >= 0xe000) return json_fail(r, "half of a surrogate pair");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    int n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4; // UTF-8, last byte first
    for (int i = n - 1; i > 0; i--, code >>= 6) r->strings[i] = (char)(0x80 | (code & 0x3f));
    r->strings[0] = (char)(n == 1 ? code : (0xf00 >> n & 0xff) | code);
    r->strings += n;
    return 0;
}

/* The rest of a string whose opening quote has been read. */
static int json_string(JsonReader *r, const char **string) {
    *string = r->strings;
    while (!json_accept(r, "\"")) {
        if (r->at == r->end) return json_fail(r, "a string does not end");
        if ((uint8_t)*r->at < ' ') return json_fail(r, "a control character in a string");
        if (json_accept(r, "\\")) {
            if (json_escape(r)) return -1;
            continue;
        }
        int n = utf8_length(r->at, r->end);
        if (!n) return json_fail(r, "invalid UTF-8 in a string");
        for (int i = 0; i < n; i++) *r->strings++ = *r->at++;
    }
    *r->strings++ = 0;
    return 0;
}

static int json_digits(JsonReader *r) {
    const char *first = r->at;
    while (r->at < r->end && *r->at >= '0' && *r->at <= '9') r->at++;
    return r->at > first;
}

static int json_number(JsonReader *r, double *number) {
    const char *first = r->at;
    json_accept(r, "-");
    if (!json_accept(r, "0") && !json_digits(r)) return json_fail(r, "expected a value");
    if (json_accept(r, ".") && !json_digits(r)) return json_fail(r, "expected digits after '.'");
    if (json_accept(r, "e") || json_accept(r, "E")) {
        if (!json_accept(r, "+")) json_accept(r, "-");
        if (!json_digits(r)) return json_fail(r, "expected an exponent's digits");
    }
    size_t n = (size_t)(r->at - first); // strtod needs an end: borrow free string space for a copy
    memcpy(r->strings, first, n);
    r->strings[n] = 0;
    *number = strtod(r->strings, NULL);
    return isfinite(*number) ? 0 : json_fail(r, "a number too large for a double");
}

static int compare_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Sorted, equal keys are neighbours: the check costs no square of their number. */
static int json_unique(const JsonReader *r, const Json *object) {
    size_t n = 0;
    for (const Json *item = object->child; item; item = item->next) n++;
    const char **keys = zalloc(n, sizeof *keys), *twice = NULL;
    if (!keys) return -1;
    n = 0;
    for (const Json *item = object->child; item; item = item->next) keys[n++] = item->key;
    qsort(keys, n, sizeof *keys, compare_text);
    for (size_t i = 1; i < n && !twice; i++)
        if (!strcmp(keys[i - 1], keys[i])) twice = keys[i];
    free(keys);
    if (!twice) return 0;
    char what[256];
    snprintf(what, sizeof what, "duplicate key \"%.200s\" in the object that ends here", twice);
    return json_fail(r, what);
}

static int json_value(JsonReader *r, Json *value, int depth);

/* The rest of an array or object whose opening bracket has been read. */
static int json_items(JsonReader *r, Json *parent, JsonType type, int depth) {
    const char *close = type == JSON_OBJECT ? "}" : "]";
    Json **link = &parent->child;
    parent->type = type;
    if (depth > JSON_DEPTH) return json_fail(r, "more than 64 levels of brackets");
    json_space(r);
    if (json_accept(r, close)) return 0;
    do {
        Json *item = *link = r->nodes++;
        link = &item->next;
        json_space(r);
        if (type == JSON_OBJECT) {
            if (!json_accept(r, "\"")) return json_fail(r, "expected a key in quotes");
            if (json_string(r, &item->key)) return -1;
            json_space(r);
            if (!json_accept(r, ":")) return json_fail(r, "expected ':'");
        }
        if (json_value(r, item, depth)) return -1;
    } while (json_accept(r, ","));
    if (!json_accept(r, close)) return json_fail(r, "expected ',' or a closing bracket");
    return type == JSON_OBJECT ? json_unique(r, parent) : 0;
}

static int json_one(JsonReader *r, Json *value, int depth) {
    if (json_accept(r, "{")) return json_items(r, value, JSON_OBJECT, depth + 1);
    if (json_accept(r, "[")) return json_items(r, value, JSON_ARRAY, depth + 1);
    if (json_accept(r, "null")) return 0; // a node's type before it is given another
    value->type = JSON_STRING;
    if (json_accept(r, "\"")) return json_string(r, &value->text);
    value->type = JSON_BOOL;
    value->number = json_accept(r, "true");
    if (value->number == 1 || json_accept(r, "false")) return 0;
    value->type = JSON_NUMBER;
    return json_number(r, &value->number);
}

/* A value inside `depth` brackets, with the space around it. */
static int json_value(JsonReader *r, Json *value, int depth) {
    json_space(r);
    if (json_one(r, value, depth)) return -1;
    json_space(r);
    return 0;
}

Json *json_parse(const char *text, size_t length, const char *name) {
    size_t n = 1, string_nodes = length / sizeof(Json) + 1; // room for length + 1 bytes
    for (size_t i = 0; i < length; i++) n += text[i] == '[' || text[i] == '{' || text[i] == ',';
    Json *root = calloc(n + string_nodes, sizeof *root); // unlike zalloc, unused pages cost nothing
    if (!root) return fail("%s: out of memory", name), NULL;
    JsonReader r = {name, text, text, text + length, root + 1, (char *)(root + n)};
    if (!json_value(&r, root, 0)) {
        if (r.at == r.end) return root;
        json_fail(&r, "expected the end of the text");
    }
    free(root);
    return NULL;
}

/* Parse the next n bytes of a file. */
static Json *json_load(FILE *f, uint64_t n, const char *name) {
    if (n > JSON_BYTES)
        return fail("%s: %llu bytes, expected at most %d", name, (unsigned long long)n, JSON_BYTES),
               NULL;
    char *text = zalloc((size_t)n, 1);
    if (!text) return NULL;
    Json *json = NULL;
    if (fread(text, 1, (size_t)n, f) == n) json = json_parse(text, (size_t)n, name);
    else fail("%s: cannot be read to its end", name);
    free(text);
    return json;
}

Json *json_read(const char *path) {
    FILE *f = file_open(path);
    if (!f) return NULL;
    Json *json = json_load(f, (uint64_t)file_size(f), path);
    fclose(f);
    return json;
}

const Json *json_get(const Json *object, const char *key) {
    if (!object || object->type != JSON_OBJECT) return NULL;
    const Json *item = object->child;
    while (item && strcmp(item->key, key)) item = item->next;
    return item;
}

/* The member of this key and type; where it is not, the error sentence begins with `where`. */
static const Json *json_need(const Json *object, const char *key, JsonType type,
                             const char *where) {
    static const char *const kinds[] = {"null",   "true or false", "number",
                                        "string", "array",         "object"};
    const Json *item = json_get(object, key);
    if (item && item->type == type) return item;
    return fail("%s: %s is %s, expected: %s", where, key, item ? kinds[item->type] : "missing",
                kinds[type]),
           NULL;
}

/* A whole number from 0 to 2^53 - 1, beyond which doubles skip some; else -1. */
static int64_t json_whole(const Json *json) {
    double x = json->type == JSON_NUMBER ? json->number : -1;
    return x >= 0 && x < 0x1p53 && x == floor(x) ? (int64_t)x : -1;
}

/* Write a string with its quotes. What is no UTF-8 (a folder's name can be anything) becomes
   U+FFFD, so that the file stays JSON. */
static void json_write_string(FILE *f, const char *string) {
    const char *end = string + strlen(string);
    fputc('"', f);
    for (int n; string < end; string += n ? n : 1) {
        n = utf8_length(string, end);
        if (!n) fputs("\xef\xbf\xbd", f);
        else if ((uint8_t)*string < ' ') fprintf(f, "\\u%04x", (unsigned)*string);
        else if (*string == '"' || *string == '\\') fprintf(f, "\\%c", *string);
        else fwrite(string, 1, (size_t)n, f);
    }
    fputc('"', f);
}

/* Safetensors: 8 bytes hold the header's length, the header is a JSON object of tensors (dtype,
   shape, and the first and one-past-last byte counted from the header's end), the rest is data. The
   data must be covered by the tensors exactly: no bytes can hide in a file, and none are shared. */

enum { F64, F32, F16, BF16, I64, OTHER }; // dtypes[]: the first three can be written, five read

static const struct {
    const char *name;
    int bytes; // of an element; 0: not known
} dtypes[] = {{"F64", 8},     {"F32", 4},     {"F16", 2},  {"BF16", 2}, {"I64", 8}, {"U64", 8},
              {"I32", 4},     {"U32", 4},     {"I16", 2},  {"U16", 2},  {"I8", 1},  {"U8", 1},
              {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"BOOL", 1}, {"", 0}};

static int dtype_find(const char *name) {
    int i = 0, n = sizeof dtypes / sizeof *dtypes;
    while (i < n - 1 && strcmp(dtypes[i].name, name)) i++;
    return i;
}

/* How many elements a shape has; -1 where that is 2^63 or more. */
static int64_t shape_count(const int64_t *shape, int n_dim) {
    int64_t count = 1;
    for (int i = 0; i < n_dim; i++) {
        if (shape[i] < 0 || (shape[i] && count > INT64_MAX / shape[i])) return -1;
        count *= shape[i];
    }
    return count;
}

/* One entry of the header: its types, its range of bytes, and whether that range fits its shape.
   `start` is where the data begins. */
static int tensor_entry(const Safetensors *s, const Json *entry, int64_t start, Stored *t) {
    char where[sizeof s->path + 256];
    snprintf(where, sizeof where, "%s: tensor %.200s", s->path, entry->key);
    const Json *dtype = json_need(entry, "dtype", JSON_STRING, where);
    const Json *shape = dtype ? json_need(entry, "shape", JSON_ARRAY, where) : NULL;
    const Json *range = shape ? json_need(entry, "data_offsets", JSON_ARRAY, where) : NULL;
    if (!range) return -1;
    t->name = entry->key;
    t->dtype = dtype->text;
    for (const Json *n = shape->child; n; n = n->next) {
        if (t->n_dim == sizeof t->shape / sizeof *t->shape)
            return fail("%s: shape has more than %d dimensions", where, t->n_dim);
        t->shape[t->n_dim] = json_whole(n);
        if (t->shape[t->n_dim++] < 0)
            return fail("%s: shape[%d] is no whole number below 2^53", where, t->n_dim - 1);
    }
    t->count = shape_count(t->shape, t->n_dim);
    if (t->count < 0) return fail("%s: shape has 2^63 elements or more", where);
    const Json *begin = range->child, *end = begin ? begin->next : NULL;
    if (!end || end->next) return fail("%s: data_offsets: expected two numbers", where);
    t->begin = json_whole(begin);
    t->end = json_whole(end);
    if (t->begin < 0 || t->end < t->begin)
        return fail("%s: data_offsets: expected whole numbers in rising order", where);
    int bytes = dtypes[dtype_find(t->dtype)].bytes;
    if (bytes && (t->count > INT64_MAX / bytes || t->end - t->begin != t->count * bytes))
        return fail("%s: data_offsets span %lld bytes, but its shape has %lld elements of %d bytes",
                    where, (long long)(t->end - t->begin), (long long)t->count, bytes);
    t->begin += start;
    t->end += start;
    return 0;
}

static int compare_place(const void *a, const void *b) {
    const Stored *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

/* Whether the ranges fill the file from `start` to its end: no overlap, no hole, no rest. */
static int tensors_fill(const Safetensors *s, int64_t start) {
    int64_t size = file_size(s->file), at = start;
    const char *name = "none";
    for (int i = 0; i < s->n_tensor; i++) {
        const Stored *t = &s->tensors[i];
        if (t->begin != at)
            return fail("%s: tensor %.200s: data begins at byte %lld, expected %lld (%s %.200s)",
                        s->path, t->name, (long long)t->begin, (long long)at,
                        t->begin < at ? "it overlaps" : "a hole after", name);
        at = t->end;
        name = t->name;
    }
    if (at == size) return 0;
    return fail("%s: the last tensor, %.200s, ends at byte %lld, the file at byte %lld (%s)",
                s->path, name, (long long)at, (long long)size,
                at < size ? "trailing bytes" : "truncated");
}

/* Make the table of tensors from the header; their data starts at byte `start`. */
static int tensors_list(Safetensors *s, int64_t start) {
    size_t n = 0;
    for (const Json *entry = s->header->child; entry; entry = entry->next) n++;
    s->tensors = zalloc(n, sizeof *s->tensors);
    if (!s->tensors) return -1;
    for (const Json *entry = s->header->child; entry; entry = entry->next) {
        if (strcmp(entry->key, "__metadata__")) {
            if (tensor_entry(s, entry, start, &s->tensors[s->n_tensor++])) return -1;
            continue;
        }
        if (entry->type != JSON_OBJECT)
            return fail("%s: __metadata__: expected an object", s->path);
        for (const Json *item = entry->child; item; item = item->next)
            if (item->type != JSON_STRING)
                return fail("%s: __metadata__: %.200s: expected a string", s->path, item->key);
    }
    qsort(s->tensors, (size_t)s->n_tensor, sizeof *s->tensors, compare_place);
    return tensors_fill(s, start);
}

/* Read the header; returns where it ends, or -1. */
static int64_t header_read(Safetensors *s) {
    uint8_t head[9]; // the header's length and first character
    char where[sizeof s->path + 16];
    int64_t size = file_size(s->file);
    if (fread(head, 1, 9, s->file) != 9 || size < 9)
        return fail("%s: %lld bytes are too few for a safetensors file", s->path, (long long)size);
    uint64_t n = get_le(head, 8);
    if (n > (uint64_t)size - 8)
        return fail("%s: header length %llu, but only %lld bytes follow", s->path,
                    (unsigned long long)n, (long long)size - 8);
    if (head[8] != '{') return fail("%s: header: expected '{' as its first character", s->path);
    snprintf(where, sizeof where, "%s: header", s->path);
    if (!fseeko(s->file, 8, SEEK_SET)) s->header = json_load(s->file, n, where);
    else fail("cannot read %s", s->path);
    return s->header ? 8 + (int64_t)n : -1;
}

int safetensors_open(Safetensors *s, const char *path) {
    memset(s, 0, sizeof *s);
    snprintf(s->path, sizeof s->path, "%s", path);
    s->file = file_open(path);
    if (!s->file) return -1;
    int64_t start = header_read(s);
    if (start >= 0 && !tensors_list(s, start)) return 0;
    safetensors_close(s);
    return -1;
}

void safetensors_close(Safetensors *s) {
    if (s->file) fclose(s->file);
    free(s->header);
    free(s->tensors);
    memset(s, 0, sizeof *s);
}

const Stored *safetensors_find(const Safetensors *s, const char *name) {
    for (int i = 0; i < s->n_tensor; i++)
        if (!strcmp(s->tensors[i].name, name)) return &s->tensors[i];
    return NULL;
}

const char *safetensors_metadata(const Safetensors *s, const char *key) {
    const Json *value = json_get(json_get(s->header, "__metadata__"), key);
    return value ? value->text : NULL;
}

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static double double_of(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* F16 is sign 1, exponent 5, fraction 10 bits: shifted into a float's places, the exponent's bias
   grows from 15 to 127, and infinity's and NaN's exponent from 31 to 255. */
static float half_value(uint32_t half) {
    uint32_t rest = half & 0x7fff;
    float x = (float)rest * 0x1p-24f; // exponent 0: subnormal
    if (rest >= 0x400) x = float_of((rest << 13) + (rest < 0x7c00 ? 112u << 23 : 224u << 23));
    return half & 0x8000 ? -x : x;
}

/* The nearest F16, ties to even: x in units of the last place that its exponent leaves. A unit too
   many carries into the exponent, as it should. -1: finite, but too large. */
static int32_t half_bits(double x) {
    int32_t sign = signbit(x) ? 0x8000 : 0;
    int exponent;
    if (isnan(x)) return sign | 0x7e00;
    if (isinf(x)) return sign | 0x7c00;
    if (fabs(x) >= 65520) return -1;              // half way from the largest, 65504, to 65536
    frexp(x, &exponent);                          // 2^(exponent - 1) <= |x|
    if (x == 0 || exponent < -13) exponent = -13; // subnormals share the smallest unit
    int32_t units = (int32_t)nearbyint(ldexp(fabs(x), 11 - exponent)); // 1024 .. 2048, or subnormal
    return sign | (((exponent + 14) << 10) + units - 1024);
}

static void decode(int dtype, const uint8_t *from, real *to, size_t n) {
    if (dtype == F64)
        for (size_t i = 0; i < n; i++) to[i] = (real)double_of(get_le(from + 8 * i, 8));
    if (dtype == F32)
        for (size_t i = 0; i < n; i++) to[i] = float_of((uint32_t)get_le(from + 4 * i, 4));
    if (dtype == F16)
        for (size_t i = 0; i < n; i++) to[i] = half_value((uint32_t)get_le(from + 2 * i, 2));
    if (dtype == BF16) // a float's upper half
        for (size_t i = 0; i < n; i++) to[i] = float_of((uint32_t)get_le(from + 2 * i, 2) << 16);
    if (dtype == I64)
        for (size_t i = 0; i < n; i++) to[i] = (real)(int64_t)get_le(from + 8 * i, 8);
}

int safetensors_read(Safetensors *s, const Stored *tensor, real *out) {
    uint8_t chunk[1 << 16];
    int dtype = dtype_find(tensor->dtype);
    if (dtype >= OTHER)
        return fail("%s: tensor %.200s: dtype %.20s, expected F64, F32, F16, BF16 or I64", s->path,
                    tensor->name, tensor->dtype);
    size_t bytes = (size_t)dtypes[dtype].bytes;
    int bad = fseeko(s->file, tensor->begin, SEEK_SET);
    for (int64_t left = tensor->count, n; left > 0 && !bad; left -= n, out += n) {
        n = (int64_t)(sizeof chunk / bytes) < left ? (int64_t)(sizeof chunk / bytes) : left;
        bad = fread(chunk, bytes, (size_t)n, s->file) != (size_t)n;
        if (!bad) decode(dtype, chunk, out, (size_t)n);
    }
    return bad ? fail("%s: tensor %.200s: its data cannot be read", s->path, tensor->name) : 0;
}

/* The counterpart of decode for one value. */
static uint64_t encode(int dtype, real x) {
    double wide = x;
    float narrow = (float)x;
    uint64_t wide_bits;
    uint32_t narrow_bits;
    memcpy(&wide_bits, &wide, sizeof wide);
    memcpy(&narrow_bits, &narrow, sizeof narrow);
    if (dtype == I64) return (uint64_t)(int64_t)x;
    return dtype == F64 ? wide_bits : dtype == F32 ? narrow_bits : (uint64_t)half_bits(x);
}

/* What would make the file wrong is found before it is begun; then only the disk can fail. */
static int tensors_check(const char *path, const Stored *tensors, int n) {
    int64_t total = 0;
    for (const Stored *t = tensors; t < tensors + n; t++) {
        int dtype = dtype_find(t->dtype);
        int64_t count = shape_count(t->shape, t->n_dim);
        if (dtype > F16)
            return fail("%s: tensor %s: dtype %s cannot be written", path, t->name, t->dtype);
        if (count < 0 || count > INT64_MAX / 8 - total)
            return fail("%s: tensor %s: too large", path, t->name);
        total += count;
        for (int64_t i = 0; dtype == F16 && t->data && i < count; i++)
            if (half_bits(t->data[i]) < 0)
                return fail("%s: tensor %s: %g is too large for F16", path, t->name,
                            (double)t->data[i]);
    }
    return 0;
}

/* The header, padded so that the data starts on a multiple of 8; its length goes in last. */
static void header_write(FILE *f, const Stored *tensors, int n, const char *const *metadata) {
    uint8_t length[8] = {0};
    fwrite(length, 1, 8, f);
    fputs("{", f);
    if (metadata) fputs("\"__metadata__\":{", f);
    for (int i = 0; metadata && metadata[i]; i++) {
        if (i) fputc(i % 2 ? ':' : ',', f);
        json_write_string(f, metadata[i]);
    }
    if (metadata) fputs(n ? "}," : "}", f);
    int64_t at = 0;
    for (const Stored *t = tensors; t < tensors + n; t++) {
        int64_t end = at + shape_count(t->shape, t->n_dim) * dtypes[dtype_find(t->dtype)].bytes;
        json_write_string(f, t->name);
        fprintf(f, ":{\"dtype\":\"%s\",\"shape\":[", t->dtype);
        for (int i = 0; i < t->n_dim; i++) fprintf(f, i ? ",%lld" : "%lld", (long long)t->shape[i]);
        fprintf(f, "],\"data_offsets\":[%lld,%lld]}%s", (long long)at, (long long)end,
                t + 1 < tensors + n ? "," : "");
        at = end;
    }
    fputc('}', f);
    while (ftello(f) % 8 > 0) fputc(' ', f);
    put_le(length, (uint64_t)ftello(f) - 8, 8);
    fseeko(f, 0, SEEK_SET);
    fwrite(length, 1, 8, f);
    fseeko(f, 0, SEEK_END);
}

static int tensor_write(FILE *f, const Stored *t) {
    uint8_t chunk[1 << 16];
    int dtype = dtype_find(t->dtype), bytes = dtypes[dtype].bytes;
    int64_t count = shape_count(t->shape, t->n_dim);
    for (int64_t done = 0; done < count;) {
        size_t n = 0;
        for (; n < sizeof chunk / 8 && done < count; n++, done++)
            put_le(chunk + n * bytes, t->data ? encode(dtype, t->data[done]) : 0, bytes);
        if (fwrite(chunk, (size_t)bytes, n, f) != n) return -1;
    }
    return 0;
}

int safetensors_write(const char *path, const Stored *tensors, int n, const char *const *metadata) {
    if (tensors_check(path, tensors, n)) return -1;
    FILE *f = file_create(path);
    if (!f) return -1;
    header_write(f, tensors, n, metadata);
    for (int i = 0; i < n && !tensor_write(f, &tensors[i]);) i++;
    return file_finish(f, path); // which sees a failed write, too
}

/* The model directory. Tensors go out and come in by the table of section 4; Hugging Face's biases,
   which this model does not have, go out as zeros and must come in as zeros. */

/* "x.weight" to "x.bias". */
static void bias_name(char *out, size_t size, const char *weight) {
    snprintf(out, size, "%.*s.bias", (int)(strrchr(weight, '.') - weight), weight);
}

static int weights_save(const Model *m, const char *path, const char *dtype) {
    static const char *const metadata[] = {"format", "pt", NULL};
    size_t n = 0, most = 2 * (size_t)m->n_tensors;
    Stored *stored = zalloc(most, sizeof *stored);
    char(*names)[sizeof m->tensors->name] = zalloc(most, sizeof *names);
    int bad = !stored || !names;
    for (int i = 0; i < m->n_tensors && !bad; i++) {
        const Tensor *t = &m->tensors[i];
        stored[n++] =
            (Stored){.name = t->name,
                     .dtype = dtype,
                     .n_dim = t->rank,
                     .shape = {(int64_t)(t->rank == 1 ? t->cols : t->rows), (int64_t)t->cols},
                     .data = m->params + t->offset};
        if (!t->has_bias) continue;
        bias_name(names[n], sizeof *names, t->name);
        stored[n] =
            (Stored){.name = names[n], .dtype = dtype, .n_dim = 1, .shape = {(int64_t)t->cols}};
        n++;
    }
    if (!bad) bad = safetensors_write(path, stored, (int)n, metadata);
    free(stored);
    free(names);
    return bad ? -1 : 0;
}

/* The tensor of this name; ImageGPTModel saves without "transformer." in front. */
static const Stored *weight_find(const Safetensors *file, const char *name) {
    const size_t prefix = strlen("transformer.");
    const Stored *s = safetensors_find(file, name);
    return s || strncmp(name, "transformer.", prefix) ? s : safetensors_find(file, name + prefix);
}

/* Is every tensor there, in its shape? Found out before memory is taken for what config.json
   promises. Only lm_head may be missing, from a classifier and from a bare ImageGPTModel. */
static int weights_check(Config config, const Safetensors *file) {
    Model m;
    int headless = safetensors_find(file, "score.weight") || safetensors_find(file, "wte.weight");
    int bad = 0;
    if (model_list(&m, config)) return -1;
    for (const Tensor *t = m.tensors; t < m.tensors + m.n_tensors && !bad; t++) {
        const Stored *s = weight_find(file, t->name);
        int64_t first = (int64_t)(t->rank == 1 ? t->cols : t->rows);
        if (!s && !(headless && t->kind == LM_HEAD))
            bad = fail("%s: tensor %s is missing", file->path, t->name);
        else if (s && (s->n_dim != t->rank || s->shape[0] != first ||
                       s->shape[t->rank - 1] != (int64_t)t->cols))
            bad = fail("%s: tensor %s has %d dimensions and %lld elements, expected %zu x %zu",
                       file->path, t->name, s->n_dim, (long long)s->count, t->rows, t->cols);
    }
    model_free(&m);
    return bad;
}

static int tensor_load(const Model *m, const Tensor *t, Safetensors *file) {
    const Stored *s = weight_find(file, t->name);
    if (s && safetensors_read(file, s, m->params + t->offset)) return -1;
    if (!t->has_bias) return 0;
    char name[sizeof t->name];
    bias_name(name, sizeof name, t->name);
    const Stored *bias = weight_find(file, name);
    if (!bias) return 0;
    if (bias->n_dim != 1 || bias->shape[0] != (int64_t)t->cols)
        return fail("%s: tensor %s has %lld elements, expected %zu", file->path, name,
                    (long long)bias->count, t->cols);
    real *values = zalloc((size_t)bias->count, sizeof *values);
    int bad = !values || safetensors_read(file, bias, values);
    for (int64_t i = 0; i < bias->count && !bad; i++)
        if (values[i] != 0)
            bad = fail("%s: tensor %s is not zero; this model has no biases", file->path, name);
    free(values);
    return bad ? -1 : 0;
}

static int config_save(const Model *m, const char *path) {
    const Config *c = &m->config;
    FILE *f = file_create(path);
    if (!f) return -1;
    fprintf(f, "{\n  \"architectures\": [\"ImageGPTFor%s\"],\n  \"model_type\": \"imagegpt\",\n",
            c->n_class ? "ImageClassification" : "CausalImageModeling");
    fprintf(f, "  \"vocab_size\": %d,\n  \"n_positions\": %d,\n  \"n_embd\": %d,\n", c->n_vocab + 1,
            c->n_px * c->n_px, c->n_embd);
    fprintf(f, "  \"n_layer\": %d,\n  \"n_head\": %d,\n  \"n_inner\": null,\n", c->n_layer,
            c->n_head);
    fprintf(f, "  \"activation_function\": \"quick_gelu\",\n  \"layer_norm_epsilon\": 1e-05,\n"
               "  \"tie_word_embeddings\": false,\n  \"resid_pdrop\": 0.0,\n"
               "  \"embd_pdrop\": 0.0,\n  \"attn_pdrop\": 0.0,\n");
    for (int k = 0; k < c->n_class; k++) {
        fprintf(f, "%s\"%d\": ", k ? ", " : "  \"id2label\": {", k);
        json_write_string(f, m->class_names[k]);
        if (k + 1 == c->n_class) fputs("},\n", f);
    }
    for (int k = 0; k < c->n_class; k++) {
        fputs(k ? ", " : "  \"label2id\": {", f);
        json_write_string(f, m->class_names[k]);
        fprintf(f, ": %d%s", k, k + 1 == c->n_class ? "},\n" : "");
    }
    fprintf(f, "  \"igpt_objective\": \"%s\"\n}\n", c->objective == OBJECTIVE_BERT ? "bert" : "ar");
    return file_finish(f, path);
}

/* A field that must be a whole number. */
static int json_int(const Json *object, const char *key, const char *path, int *value) {
    const Json *field = json_get(object, key);
    int64_t whole = field ? json_whole(field) : -1;
    if (whole < 0 || whole > INT_MAX)
        return fail("%s: field %s is %s, expected a whole number", path, key,
                    field ? "no such number" : "missing");
    *value = (int)whole;
    return 0;
}

/* A field that, where it is there, must hold what this model computes. */
static int json_must(const Json *object, const char *key, const char *path, const char *text,
                     double number) {
    const Json *field = json_get(object, key);
    if (!field || field->type == JSON_NULL) return 0;
    if (text && (field->type != JSON_STRING || strcmp(field->text, text)))
        return fail("%s: field %s is not \"%s\"", path, key, text);
    if (!text && (field->text || field->child || fabs(field->number - number) > 1e-9))
        return fail("%s: field %s is not %g", path, key, number);
    return 0;
}

static int config_load(Config *c, const Json *json, const char *path) {
    int vocab, positions;
    *c = (Config){.n_class = 0};
    if (json_must(json, "model_type", path, "imagegpt", 0) ||
        json_int(json, "vocab_size", path, &vocab) ||
        json_int(json, "n_positions", path, &positions) ||
        json_int(json, "n_embd", path, &c->n_embd) || json_int(json, "n_head", path, &c->n_head) ||
        json_int(json, "n_layer", path, &c->n_layer) ||
        json_must(json, "activation_function", path, "quick_gelu", 0) ||
        json_must(json, "layer_norm_epsilon", path, NULL, 1e-5) ||
        json_must(json, "n_inner", path, NULL, 4.0 * c->n_embd) ||
        json_must(json, "scale_attn_weights", path, NULL, 1) ||
        json_must(json, "scale_attn_by_inverse_layer_idx", path, NULL, 0) ||
        json_must(json, "tie_word_embeddings", path, NULL, 0))
        return -1;
    c->n_vocab = vocab - 1;
    c->n_px = (int)lround(sqrt(positions));
    if ((int64_t)c->n_px * c->n_px != positions)
        return fail("%s: field n_positions is %d, which is no square", path, positions);
    const Json *objective = json_get(json, "igpt_objective");
    if (objective && objective->text && !strcmp(objective->text, "bert"))
        c->objective = OBJECTIVE_BERT;
    else if (json_must(json, "igpt_objective", path, "ar", 0)) return -1;
    return config_check(c) ? fail("%s: %s", path, error_text()) : 0;
}

static int palette_save(const Model *m, const char *path) {
    FILE *f = file_create(path);
    if (!f) return -1;
    fprintf(f,
            "{\n  \"image_processor_type\": \"ImageGPTImageProcessor\",\n"
            "  \"do_resize\": true,\n  \"do_normalize\": true,\n"
            "  \"do_color_quantize\": true,\n  \"resample\": 2,\n"
            "  \"size\": {\"height\": %d, \"width\": %d},\n  \"clusters\": [",
            m->config.n_px, m->config.n_px);
    for (int k = 0; k < m->config.n_vocab; k++)
        fprintf(f, "%s\n    [%.9g, %.9g, %.9g]", k ? "," : "", (double)m->palette[3 * k],
                (double)m->palette[3 * k + 1], (double)m->palette[3 * k + 2]);
    fprintf(f, "\n  ]\n}\n");
    return file_finish(f, path);
}

enum { MOST_COLOURS = 65535 };
static const double PALETTE_MOST = 1.001; // in [-1, 1], but for rounding

/* The palette of a preprocessor_config.json: K colours into palette, room for `most`; returns K. */
static int palette_load(real *palette, int most, const Json *json, const char *path) {
    const Json *clusters = json_get(json, "clusters"), *colour;
    int k = 0;
    if (!clusters || clusters->type != JSON_ARRAY)
        return fail("%s: field clusters is missing or no list", path);
    for (colour = clusters->child; colour; colour = colour->next, k++) {
        const Json *part = colour->child;
        if (k == most) return fail("%s: field clusters has more than %d colours", path, most);
        for (int j = 0; j < 3; j++, part = part->next) {
            if (!part || part->type != JSON_NUMBER || fabs(part->number) > PALETTE_MOST)
                return fail("%s: clusters[%d] is not three numbers from -1 to 1", path, k);
            palette[3 * k + j] = (real)part->number;
        }
        if (part) return fail("%s: clusters[%d] has more than three numbers", path, k);
    }
    return k;
}

/* What follows a key of an .npy file's header, a Python dictionary; "" if it is missing. */
static const char *npy_value(const char *header, const char *key) {
    const char *at = strstr(header, key);
    if (!at) return "";
    at += strlen(key);
    return at + strspn(at, ": ");
}

/* The header of an .npy file: 6 magic bytes, the format's version in two, the length of what
   follows in two (version 1) or four, and a dictionary of element type, order and shape. */
static int npy_header(FILE *f, const char *path, int *dtype, int *K) {
    uint8_t head[12];
    char text[4096] = "";
    int columns = 0, end = 0;
    if (fread(head, 1, 8, f) != 8 || memcmp(head, "\x93NUMPY", 6))
        return fail("%s: no .npy file", path);
    if (head[6] < 1 || head[6] > 3)
        return fail("%s: .npy version %d, expected 1 to 3", path, head[6]);
    int bytes = head[6] == 1 ? 2 : 4;
    if (fread(head + 8, 1, (size_t)bytes, f) != (size_t)bytes)
        return fail("%s: truncated in its header", path);
    uint64_t length = get_le(head + 8, bytes);
    if (length >= sizeof text) return fail("%s: its header is longer than any palette's", path);
    if (fread(text, 1, (size_t)length, f) != length)
        return fail("%s: truncated in its header", path);
    const char *descr = npy_value(text, "'descr'"), *shape = npy_value(text, "'shape'");
    *dtype = !strncmp(descr, "'<f4'", 5) ? F32 : !strncmp(descr, "'<f8'", 5) ? F64 : OTHER;
    if (*dtype == OTHER)
        return fail("%s: descr is %.16s, expected '<f4' or '<f8'", path,
                    *descr ? descr : "missing");
    if (strncmp(npy_value(text, "'fortran_order'"), "False", 5))
        return fail("%s: fortran_order is not False", path);
    if (sscanf(shape, "(%9d, %9d %n", K, &columns, &end) != 2 || shape[end] != ')' || columns != 3)
        return fail("%s: shape is %.24s, expected (K, 3)", path, *shape ? shape : "missing");
    if (*K < 1 || *K > MOST_COLOURS)
        return fail("%s: %d colours, not 1 to %d", path, *K, MOST_COLOURS);
    return 0;
}

/* An .npy file's colours into palette, room for MOST_COLOURS; returns how many. */
static int npy_load(real *palette, FILE *f, const char *path) {
    uint8_t value[8];
    int dtype, K;
    if (npy_header(f, path, &dtype, &K)) return -1;
    int bytes = dtypes[dtype].bytes;
    int64_t is = file_size(f) - ftell(f), wanted = (int64_t)K * 3 * bytes;
    if (is != wanted)
        return fail("%s: %lld bytes of data, expected %lld", path, (long long)is,
                    (long long)wanted);
    for (int i = 0; i < 3 * K; i++) {
        if (fread(value, 1, (size_t)bytes, f) != (size_t)bytes)
            return fail("%s: its data cannot be read", path);
        decode(dtype, value, &palette[i], 1);
        if (!(fabs((double)palette[i]) <= PALETTE_MOST))
            return fail("%s: colour %d is not three numbers from -1 to 1", path, i / 3);
    }
    return K;
}

real *palette_read(const char *path, int *K) {
    size_t length = strlen(path);
    real *palette = zalloc(3 * MOST_COLOURS, sizeof *palette);
    *K = -1;
    if (palette && length > 4 && !strcmp(path + length - 4, ".npy")) {
        FILE *f = file_open(path);
        if (f) *K = npy_load(palette, f, path);
        if (f) fclose(f);
    } else if (palette) {
        Json *json = json_read(path);
        if (json) *K = palette_load(palette, MOST_COLOURS, json, path);
        free(json);
    }
    if (*K > 0) return palette;
    if (*K == 0) fail("%s: no colours", path);
    free(palette);
    return NULL;
}

int model_save(const Model *m, const char *dir, const char *dtype) {
    if (folder_make(dir) || weights_save(m, file_in(dir, "model.safetensors"), dtype)) return -1;
    if (config_save(m, file_in(dir, "config.json"))) return -1;
    return palette_save(m, file_in(dir, "preprocessor_config.json"));
}

/* Everything but config.json, into a model laid out from it. */
static int model_fill(Model *m, const char *dir, Safetensors *weights, const Json *config) {
    for (int i = 0; i < m->n_tensors; i++)
        if (tensor_load(m, &m->tensors[i], weights)) return -1;
    const Json *labels = json_get(config, "id2label");
    for (const Json *name = labels ? labels->child : NULL; name; name = name->next) {
        long k = name->key ? strtol(name->key, NULL, 10) : -1;
        if (name->text && k >= 0 && k < m->config.n_class && class_rename(m, (int)k, name->text))
            return -1;
    }
    const char *path = file_in(dir, "preprocessor_config.json");
    Json *json = json_read(path);
    int n = json ? palette_load(m->palette, m->config.n_vocab, json, path) : -1;
    free(json);
    if (n < 0 || n == m->config.n_vocab) return n < 0 ? -1 : 0;
    return fail("%s: clusters has %d colours, config.json expects %d", path, n, m->config.n_vocab);
}

int model_load(Model *m, const char *dir) {
    Safetensors weights;
    Config c;
    *m = (Model){.n_tensors = 0};
    const char *path = file_in(dir, "config.json");
    Json *json = json_read(path);
    if (!json) return -1;
    int bad = config_load(&c, json, path);
    if (!bad && !(bad = safetensors_open(&weights, file_in(dir, "model.safetensors")))) {
        const Stored *score = safetensors_find(&weights, "score.weight");
        if (score && score->n_dim && score->shape[0] <= 65535) c.n_class = (int)score->shape[0];
        bad = weights_check(c, &weights) || model_init(m, c) || model_fill(m, dir, &weights, json);
        safetensors_close(&weights);
    }
    free(json);
    if (bad) model_free(m);
    return bad ? -1 : 0;
}

/* ==== 10 sampling ===============================================================================
   Pictures are drawn one position after another (paper, section 3: samples are a by-product of
   L_AR). Each position's keys and values never change once computed, so they are kept: a step costs
   one row of every matrix product, and reads every weight once for all B images. */

struct Sampler {
    int B;
    RowDrawn *watch;
    void *context; // watch's
    real *keys;    // (L, B, H, T, d / H): what a head looks back on is one run of memory
    real *values;  // the same
    real *h, *n, *inv, *qkv, *att, *u, *logits;
    real *scores;       // (B, H, T)
    real *room;         // (2, K) for the draw
    uint16_t *previous; // (B)
};

static size_t sampler_place(Sampler *s, real *base, const Config *c) {
    size_t T = dimension(c, DIM_T), d = (size_t)c->n_embd, B = (size_t)s->B, used = 0;
    s->keys = carve(base, &used, (size_t)c->n_layer * B * T * d);
    s->values = carve(base, &used, (size_t)c->n_layer * B * T * d);
    s->h = carve(base, &used, B * d);
    s->n = carve(base, &used, B * d);
    s->inv = carve(base, &used, B);
    s->qkv = carve(base, &used, B * 3 * d);
    s->att = carve(base, &used, B * d);
    s->u = carve(base, &used, B * 4 * d);
    s->logits = carve(base, &used, B * (size_t)c->n_vocab);
    s->scores = carve(base, &used, B * (size_t)c->n_head * T);
    s->room = carve(base, &used, 2 * (size_t)c->n_vocab);
    s->previous = (uint16_t *)(void *)carve(base, &used, B); // a real is not smaller
    return used * sizeof(real);
}

enum { SAMPLER_HEADER = (sizeof(Sampler) + 63) / 64 * 64 };

size_t sampler_bytes(const Config *c, int B) {
    Sampler s = {.B = B};
    return SAMPLER_HEADER + sampler_place(&s, NULL, c);
}

Sampler *sampler_new(const Config *c, int B) {
    if (c->objective != OBJECTIVE_AR)
        return fail("only a model trained with L_AR can draw pictures, this one is BERT"), NULL;
    Sampler *s = zalloc(sampler_bytes(c, B), 1);
    if (!s) return NULL;
    s->B = B;
    sampler_place(s, (real *)((char *)s + SAMPLER_HEADER), c);
    return s;
}

/* Attention of one position to itself and those before it, for each image and head: the keys and
   the values of the past are read once, from front to back. */
static void attend_cached(Sampler *s, const Config *c, int l, int t, int B) {
    size_t T = dimension(c, DIM_T), d = (size_t)c->n_embd, H = (size_t)c->n_head, hs = d / H;
    real scale = 1 / (real)sqrt((double)hs);
#pragma omp parallel for schedule(static)
    for (int task = 0; task < B * c->n_head; task++) {
        size_t b = (size_t)task / H, h = (size_t)task % H;
        size_t head = ((size_t)l * (size_t)s->B * H + (size_t)task) * T * hs;
        real *keys = s->keys + head, *values = s->values + head; // (T, hs)
        real *p = s->scores + (size_t)task * T;                  // (T)
        const real *q = s->qkv + b * 3 * d + h * hs;
        real *out = s->att + b * d + h * hs, lse;
        memcpy(keys + (size_t)t * hs, q + d, hs * sizeof *keys);
        memcpy(values + (size_t)t * hs, q + 2 * d, hs * sizeof *values);
        for (int j = 0; j <= t; j++) {
            const real *k = keys + (size_t)j * hs;
            real dot = 0;
#pragma omp simd reduction(+ : dot)
            for (size_t i = 0; i < hs; i++) dot += q[i] * k[i];
            p[j] = scale * dot;
        }
        real inverse = 1 / softmax_row(p, t + 1, &lse);
        matmul(1, (int)hs, t + 1, p, T, 1, values, hs, 1, out, hs, 0);
        for (size_t i = 0; i < hs; i++) out[i] *= inverse;
    }
}

const real *sampler_step(const Model *m, Sampler *s, int t, const uint16_t *previous, int B) {
    const Config *c = &m->config;
    int d = c->n_embd;
    real *w = m->params;
    for (int b = 0; b < B; b++) {
        const real *content = at(m, w, WTE, 0) + (size_t)(t ? previous[b] : c->n_vocab) * (size_t)d;
        const real *position = at(m, w, WPE, 0) + (size_t)t * (size_t)d;
        for (int i = 0; i < d; i++)
            s->h[(size_t)b * (size_t)d + (size_t)i] = content[i] + position[i];
    }
    for (int l = 0; l < c->n_layer; l++) {
        rms_forward(s->n, s->inv, s->h, at(m, w, LN_1, l), B, d);
        linear_forward(s->qkv, s->n, at(m, w, C_ATTN, l), B, d, 3 * d, 0);
        attend_cached(s, c, l, t, B);
        linear_forward(s->h, s->att, at(m, w, ATTN_PROJ, l), B, d, d, 1);
        rms_forward(s->n, s->inv, s->h, at(m, w, LN_2, l), B, d);
        linear_forward(s->u, s->n, at(m, w, C_FC, l), B, d, 4 * d, 0);
        gelu_forward(s->u, s->u, B, 4 * d);
        linear_forward(s->h, s->u, at(m, w, MLP_PROJ, l), B, 4 * d, d, 1);
    }
    rms_forward(s->n, s->inv, s->h, at(m, w, LN_F, 0), B, d);
    linear_backward_input(s->logits, s->n, at(m, w, LM_HEAD, 0), B, c->n_vocab, d);
    return s->logits;
}

void sampler_watch(Sampler *s, RowDrawn *watch, void *context) {
    s->watch = watch;
    s->context = context;
}

double sample_uniform(uint64_t seed, int image, int t) {
    return random_uniform(seed, stream_of(FOR_SAMPLE, (uint64_t)image), (uint64_t)t);
}

static int descending(const void *a, const void *b) {
    real x = *(const real *)a, y = *(const real *)b;
    return (x < y) - (x > y);
}

/* Draw a colour: the first whose cumulative probability exceeds `uniform`. room: 2 K reals. */
static int draw(const real *logits, int K, double uniform, double temperature, int top_k,
                real *room) {
    real *p = room, *sorted = room + K, least = -INFINITY;
    if (top_k > 0 && top_k < K) {
        memcpy(sorted, logits, (size_t)K * sizeof *sorted);
        qsort(sorted, (size_t)K, sizeof *sorted, descending);
        least = sorted[top_k - 1];
    }
    real max = row_max(logits, K);
    double sum = 0, at = 0;
    int last = 0;
    for (int k = 0; k < K; k++) {
        p[k] = logits[k] < least ? 0 : real_exp((real)((logits[k] - max) / temperature));
        sum += p[k];
    }
    for (int k = 0; k < K; k++) {
        if (p[k] > 0) last = k;
        at += p[k];
        if (at > uniform * sum) break;
    }
    return last;
}

void sample_images(const Model *m, Sampler *s, uint16_t *tokens, int n, int given, uint64_t seed,
                   int first, double temperature, int top_k) {
    int px = m->config.n_px, T = px * px, K = m->config.n_vocab;
    for (int i0 = 0; i0 < n; i0 += s->B) {
        int B = n - i0 < s->B ? n - i0 : s->B;
        uint16_t *previous = s->previous;
        for (int t = 0; t < T; t++) {
            const real *logits = sampler_step(m, s, t, previous, B);
            for (int b = 0; b < B; b++) {
                uint16_t *token = &tokens[(size_t)(i0 + b) * (size_t)T + (size_t)t];
                if (t >= given)
                    *token = (uint16_t)draw(logits + (size_t)b * (size_t)K, K,
                                            sample_uniform(seed, first + i0 + b, t), temperature,
                                            top_k, s->room);
                previous[b] = *token;
            }
            if (s->watch && (t + 1) % px == 0)
                s->watch(s->context, tokens + (size_t)i0 * (size_t)T, B, (t + 1) / px);
        }
    }
}

/* ==== 11 probe ==================================================================================
   How good are the features that pre-training left (paper, section 2.4)? The network is frozen; a
   logistic regression on the features of one layer shows how much of the classes a plane can read
   off them. The idea to take away: one pass over the data collects all layers, side by side in a
   picture's row, so that a layer, or several neighbours joined, is a range of columns. */

size_t feature_width(const Config *c, int pool) {
    return (size_t)c->n_embd * (pool == POOL_NONE ? dimension(c, DIM_T) : 1);
}

void model_features(const Model *m, Activations *s, const uint16_t *tokens, const uint8_t *mask,
                    int B, int pool, int first, int count, double scale, real *out) {
    const Config *c = &m->config;
    int T = c->n_px * c->n_px, d = c->n_embd, L = c->n_layer;
    size_t width = feature_width(c, pool);
    model_embed(m, s, tokens, mask, B);
    for (int l = 0; l < first + count; l++) {
        if (l >= first) { // inv_f serves as scratch: nothing reads it after this pass
            const real *gain = at(m, m->params, l < L ? LN_1 : LN_F, l);
            rms_forward(s->n, s->inv_f, layer_slot(s, c, l, B).h, gain, B * T, d);
            pool_add(out + (size_t)(l - first) * width, (size_t)count * width, s->n, B, T, d, pool,
                     scale);
        }
        if (l + 1 < first + count) model_layer(m, s, l, B);
    }
}

/* L-BFGS. Newton's step -H^-1 g without a matrix: what the last few steps did to the gradient says
   enough of the curvature to correct the gradient's direction. */
enum { HISTORY = 10 };

static double dot(const real *a, const real *b, size_t n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

static void add_scaled(real *out, double scale, const real *x, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) out[i] += (real)scale * x[i];
}

/* d = -H^-1 g by the two loops over the last steps s (HISTORY, n) and the changes y (HISTORY, n) of
   the gradient along them; step number i lies in slot i % HISTORY, curvature holds s y. */
static void newton_direction(real *d, const real *g, const real *s, const real *y,
                             const double *curvature, int step, size_t n) {
    double alpha[HISTORY];
    int oldest = step < HISTORY ? 0 : step - HISTORY;
    for (size_t i = 0; i < n; i++) d[i] = -g[i];
    for (int k = step - 1; k >= oldest; k--) {
        int slot = k % HISTORY;
        alpha[slot] = dot(s + (size_t)slot * n, d, n) / curvature[slot];
        add_scaled(d, -alpha[slot], y + (size_t)slot * n, n);
    }
    if (step) { // start the second loop from H^-1 = (s y / y y) I, the newest step's scale
        const real *newest = y + (size_t)((step - 1) % HISTORY) * n;
        double scale = curvature[(step - 1) % HISTORY] / dot(newest, newest, n);
        for (size_t i = 0; i < n; i++) d[i] *= (real)scale;
    }
    for (int k = oldest; k < step; k++) {
        int slot = k % HISTORY;
        double beta = dot(y + (size_t)slot * n, d, n) / curvature[slot];
        add_scaled(d, alpha[slot] - beta, s + (size_t)slot * n, n);
    }
}

int lbfgs(Smooth *f, void *context, real *x, size_t n, int most, double tolerance) {
    enum { TRIALS = 30 };
    real *room = zalloc((4 + 2 * HISTORY) * n, sizeof *room);
    if (!room) return -1;
    real *g = room, *d = g + n, *next_x = d + n, *next_g = next_x + n;
    real *s = next_g + n, *y = s + HISTORY * n;
    double curvature[HISTORY], value = f(context, x, g);
    int step = 0;
    for (; step < most; step++) {
        double largest = 0, low = 0, high = INFINITY, next = value;
        for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)g[i]));
        if (largest <= tolerance) break;
        newton_direction(d, g, s, y, curvature, step, n);
        double slope = dot(d, g, n), length = step ? 1 : fmin(1, 1 / sqrt(-slope));
        int trial = 0;
        for (; trial < TRIALS && slope < 0; trial++) { // weak Wolfe conditions, by bisection
            memcpy(next_x, x, n * sizeof *x);
            add_scaled(next_x, length, d, n);
            next = f(context, next_x, next_g);
            if (!(next <= value + 1e-4 * length * slope)) high = length; // falls too little
            else if (dot(d, next_g, n) < 0.9 * slope) low = length;      // still steep
            else break;
            length = isinf(high) ? 2 * low : (low + high) / 2;
        }
        if (trial == TRIALS || !(slope < 0)) break; // rounding hides what there is left to gain
        size_t slot = (size_t)(step % HISTORY) * n;
        for (size_t i = 0; i < n; i++) {
            s[slot + i] = next_x[i] - x[i];
            y[slot + i] = next_g[i] - g[i];
        }
        curvature[step % HISTORY] = dot(s + slot, y + slot, n);
        memcpy(x, next_x, n * sizeof *x);
        memcpy(g, next_g, n * sizeof *g);
        value = next;
    }
    free(room);
    return step;
}

/* Multinomial logistic regression. Classes are few and pictures many: logits lie as (C, n), so that
   vectors run over pictures. */
typedef struct {
    const real *x; // (n, width)
    const uint16_t *labels;
    int n, width, C;
    double l2;
    real *logits; // (C, n), then their gradient
    real *nll;    // (n)
} Logistic;

/* logits (C, n) = W x' + b; w holds W (C, width), then b (C). */
static void logistic_logits(const Logistic *p, const real *w) {
    size_t n = (size_t)p->n, width = (size_t)p->width;
    const real *bias = w + (size_t)p->C * width;
    for (size_t i = 0; i < (size_t)p->C * n; i++) p->logits[i] = bias[i / n];
    matmul(p->C, p->n, p->width, w, width, 1, p->x, 1, width, p->logits, n, 1);
}

/* Returns the mean of nll = -log p(label); logits become its gradient, (p - [k = label]) / n. */
static double logistic_softmax(const Logistic *p) {
    enum { BLOCK = 64 };
    size_t n = (size_t)p->n;
    double total = 0;
#pragma omp parallel for schedule(static) if ((double)p->C * p->n > 1e5)
    for (size_t i0 = 0; i0 < n; i0 += BLOCK) {
        size_t count = n - i0 < BLOCK ? n - i0 : BLOCK;
        const uint16_t *labels = p->labels + i0;
        real max[BLOCK], sum[BLOCK] = {0}, *nll = p->nll + i0, *first = p->logits + i0;
        real *end = first + (size_t)p->C * n;
        memcpy(max, first, count * sizeof *max);
        for (real *row = first; row < end; row += n)
            for (size_t i = 0; i < count; i++) max[i] = row[i] > max[i] ? row[i] : max[i];
        for (size_t i = 0; i < count; i++) nll[i] = max[i] - first[labels[i] * n + i];
        for (real *row = first; row < end; row += n)
            for (size_t i = 0; i < count; i++) {
                row[i] = real_exp(row[i] - max[i]);
                sum[i] += row[i];
            }
        for (size_t i = 0; i < count; i++) {
            nll[i] += (real)log(sum[i]);
            sum[i] = 1 / (sum[i] * (real)n);
        }
        for (real *row = first; row < end; row += n)
            for (size_t i = 0; i < count; i++) row[i] *= sum[i];
        for (size_t i = 0; i < count; i++) first[labels[i] * n + i] -= 1 / (real)n;
    }
    for (size_t i = 0; i < n; i++) total += p->nll[i];
    return total / (double)n;
}

/* The mean nll + l2 / 2 |W|^2.  With P (C, n) the logits' gradient: dW = P x + l2 W, db = P 1. */
static double logistic_loss(void *context, const real *w, real *gradient) {
    const Logistic *p = context;
    size_t n = (size_t)p->n, width = (size_t)p->width, size = (size_t)p->C * width;
    logistic_logits(p, w);
    double loss = logistic_softmax(p);
    matmul(p->C, p->width, p->n, p->logits, n, 1, p->x, width, 1, gradient, width, 0);
    add_scaled(gradient, p->l2, w, size);
    for (int k = 0; k < p->C; k++) {
        double sum = 0;
        for (size_t i = 0; i < n; i++) sum += p->logits[(size_t)k * n + i];
        gradient[size + (size_t)k] = (real)sum;
    }
    return loss + p->l2 / 2 * dot(w, w, size);
}

int logistic_fit(real *w, const real *x, const uint16_t *labels, int n, int width, int C, double l2,
                 double tolerance) {
    enum { MOST_STEPS = 1000 };
    Logistic p = {.x = x, .labels = labels, .n = n, .width = width, .C = C, .l2 = l2};
    p.logits = zalloc((size_t)n, ((size_t)C + 1) * sizeof *p.logits);
    if (!p.logits) return -1;
    p.nll = p.logits + (size_t)n * (size_t)C;
    int steps = lbfgs(logistic_loss, &p, w, ((size_t)width + 1) * (size_t)C, MOST_STEPS, tolerance);
    free(p.logits);
    return steps;
}

double logistic_accuracy(const real *w, const real *x, const uint16_t *labels, int n, int width,
                         int C) {
    Logistic p = {.x = x, .n = n, .width = width, .C = C};
    p.logits = zalloc((size_t)n, (size_t)C * sizeof *p.logits);
    if (!p.logits) return -1;
    int correct = 0;
    logistic_logits(&p, w);
    for (size_t i = 0; i < (size_t)n; i++) {
        size_t best = 0;
        for (size_t k = 1; k < (size_t)C; k++)
            if (p.logits[k * (size_t)n + i] > p.logits[best * (size_t)n + i]) best = k;
        correct += best == labels[i];
    }
    free(p.logits);
    return (double)correct / n;
}

/* A probe: the parts of the pictures, each in memory of its own. */
typedef struct {
    int n;
    real *x; // (n, width)
    uint16_t *labels;
} Part;

/* Copy out the rows that are of one part. */
static int part_gather(Part *p, int which, const real *x, size_t row, int width, const int *labels,
                       const uint8_t *part, int n) {
    static const char *const purposes[] = {"train on", "validate on", "test on"};
    for (int i = 0; i < n; i++) p->n += part[i] == which;
    if (!p->n) return fail("there are no labelled pictures to %s", purposes[which]);
    p->x = zalloc((size_t)p->n, (size_t)width * sizeof *p->x);
    p->labels = zalloc((size_t)p->n, sizeof *p->labels);
    if (!p->x || !p->labels) return -1;
    for (int i = 0, k = 0; i < n; i++) {
        if (part[i] != which) continue;
        memcpy(p->x + (size_t)k * (size_t)width, x + (size_t)i * row, (size_t)width * sizeof *x);
        p->labels[k++] = (uint16_t)labels[i];
    }
    return 0;
}

/* Give each column mean 0 and standard deviation 1 in the training part, and move the other parts
   alike; a column that is constant there says nothing and becomes 0. */
static void standardise(const Part *parts, int width) {
    enum { COLUMNS = 16 };
    const Part *train = &parts[PART_TRAIN];
#pragma omp parallel for schedule(static)
    for (int j0 = 0; j0 < width; j0 += COLUMNS) {
        double mean[COLUMNS] = {0}, variance[COLUMNS] = {0}, scale[COLUMNS];
        int columns = width - j0 < COLUMNS ? width - j0 : COLUMNS;
        for (int i = 0; i < train->n; i++) {
            const real *v = train->x + (size_t)i * (size_t)width + j0;
            for (int j = 0; j < columns; j++) mean[j] += (double)v[j] / train->n;
        }
        for (int i = 0; i < train->n; i++) {
            const real *v = train->x + (size_t)i * (size_t)width + j0;
            for (int j = 0; j < columns; j++)
                variance[j] += ((double)v[j] - mean[j]) * ((double)v[j] - mean[j]) / train->n;
        }
        for (int j = 0; j < columns; j++) { // a deviation below 1e-6 of the mean is rounding
            double deviation = sqrt(variance[j]);
            scale[j] = deviation > 1e-6 * fabs(mean[j]) ? 1 / deviation : 0;
        }
        for (const Part *p = parts; p < parts + 3; p++)
            for (int i = 0; i < p->n; i++) {
                real *v = p->x + (size_t)i * (size_t)width + j0;
                for (int j = 0; j < columns; j++)
                    v[j] = (real)(((double)v[j] - mean[j]) * scale[j]);
            }
    }
}

/* Fit with each L2 strength, from the strongest on, each from the last one's weights. */
static int probe_grid(Probe *probe, const Part *parts, int width, int C) {
    static const double grid[] = {10, 1, 0.1, 0.01, 1e-3, 1e-4, 1e-5};
    const Part *train = &parts[PART_TRAIN];
    real *w = zalloc((size_t)C, ((size_t)width + 1) * sizeof *w);
    int bad = !w;
    for (size_t k = 0; k < sizeof grid / sizeof *grid && !bad; k++) {
        Probe now = {.l2 = grid[k]};
        bad = logistic_fit(w, train->x, train->labels, train->n, width, C, now.l2, 1e-4) < 0;
        for (int which = PART_TRAIN; which <= PART_TEST && !bad; which++) {
            const Part *p = &parts[which];
            now.accuracy[which] = logistic_accuracy(w, p->x, p->labels, p->n, width, C);
            bad = now.accuracy[which] < 0;
        }
        if (!k || now.accuracy[PART_VALIDATION] > probe->accuracy[PART_VALIDATION]) *probe = now;
    }
    free(w);
    return bad ? -1 : 0;
}

int probe_fit(Probe *probe, const real *x, size_t row, int width, const int *labels,
              const uint8_t *part, int n, int n_class) {
    Part parts[3] = {{.n = 0}};
    int bad = 0;
    for (int which = PART_TRAIN; which <= PART_TEST && !bad; which++)
        bad = part_gather(&parts[which], which, x, row, width, labels, part, n);
    if (!bad) {
        standardise(parts, width);
        bad = probe_grid(probe, parts, width, n_class);
    }
    for (int which = PART_TRAIN; which <= PART_TEST; which++) {
        free(parts[which].x);
        free(parts[which].labels);
    }
    return bad ? -1 : 0;
}

int npy_write(const char *path, const Stored *array) {
    static const char *const names[] = {[F64] = "<f8", [F32] = "<f4", [F16] = "<f2", [I64] = "<i8"};
    int dtype = dtype_find(array->dtype), used = 0;
    char text[256];
    if (dtype >= OTHER || !names[dtype])
        return fail("%s: dtype %s cannot be written", path, array->dtype);
    used = snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (",
                    names[dtype]);
    for (int i = 0; i < array->n_dim; i++)
        used +=
            snprintf(text + used, sizeof text - (size_t)used, "%lld,", (long long)array->shape[i]);
    used += snprintf(text + used, sizeof text - (size_t)used, ")}");
    FILE *f = file_create(path);
    if (!f) return -1;
    int length = (10 + used + 1 + 63) / 64 * 64 - 10; // the data begins on a multiple of 64
    uint8_t head[10] = "\x93NUMPY\1\0";
    put_le(head + 8, (uint64_t)length, 2);
    fwrite(head, 1, 10, f);
    fprintf(f, "%-*s\n", length - 1, text);
    tensor_write(f, array); // a failure stays in f until file_finish
    return file_finish(f, path);
}

/* ==== 12 pictures ===============================================================================
   What a person looks at: PNG sheets, the terminal, SVG charts. A PNG without compression is a few
   headers, two checksums and the pixels; every viewer opens it. */

static uint32_t crc32_add(uint32_t crc, const uint8_t *p, size_t n) {
    /* The polynomial 0xedb88320 worked through four bits. */
    static const uint32_t nibble[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac,
                                        0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
                                        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                        0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    for (size_t i = 0; i < n; i++) {
        crc = nibble[(crc ^ p[i]) & 15] ^ crc >> 4;
        crc = nibble[(crc ^ p[i] >> 4) & 15] ^ crc >> 4;
    }
    return crc;
}

static void png_chunk(FILE *f, const char *type, const uint8_t *data, size_t n) {
    uint8_t word[4];
    put_be(word, n, 4);
    fwrite(word, 1, 4, f);
    fwrite(type, 1, 4, f);
    fwrite(data, 1, n, f);
    put_be(word, ~crc32_add(crc32_add(~0u, (const uint8_t *)type, 4), data, n), 4);
    fwrite(word, 1, 4, f);
}

int png_write(const char *path, const uint8_t *rgb, int width, int height) {
    enum { STORED_MOST = 65535 };
    size_t row = 3 * (size_t)width, size = (size_t)height * (row + 1), used = 2;
    size_t blocks = (size + STORED_MOST - 1) / STORED_MOST;
    uint8_t *z = zalloc(2 + size + 5 * blocks + 4, 1), *raw = zalloc(size, 1), head[13] = {0};
    FILE *f = z && raw ? file_create(path) : NULL;
    if (f) {
        for (size_t y = 0; y < (size_t)height; y++) // each row: filter type 0, pixels
            memcpy(raw + y * (row + 1) + 1, rgb + y * row, row);
        z[0] = 0x78, z[1] = 0x01; // zlib: deflate, window of 32 KiB
        uint32_t low = 1, high = 0;
        for (size_t i = 0; i < size; i++) { // Adler-32
            low = (low + raw[i]) % 65521;
            high = (high + low) % 65521;
        }
        for (size_t i = 0; i < size; i += STORED_MOST) {
            size_t n = size - i < STORED_MOST ? size - i : STORED_MOST;
            z[used] = i + n == size; // stored block; the last one says so
            put_le(z + used + 1, n, 2);
            put_le(z + used + 3, ~n, 2);
            memcpy(z + used + 5, raw + i, n);
            used += 5 + n;
        }
        put_be(z + used, (uint64_t)high << 16 | low, 4);
        put_be(head, (uint64_t)width, 4);
        put_be(head + 4, (uint64_t)height, 4);
        head[8] = 8; // bits a channel
        head[9] = 2; // RGB
        fwrite("\x89PNG\r\n\x1a\n", 1, 8, f);
        png_chunk(f, "IHDR", head, sizeof head);
        png_chunk(f, "IDAT", z, used + 4);
        png_chunk(f, "IEND", head, 0);
    }
    free(raw);
    free(z);
    return f ? file_finish(f, path) : -1;
}

/* Sheets of pictures: each about CELL pixels wide, GAP apart, on grey. */
enum { CELL = 96, GAP = 4, GROUND = 0xe8 };

static uint8_t *sheet_new(int width, int height) {
    uint8_t *sheet = zalloc((size_t)width * (size_t)height, 3);
    return sheet ? memset(sheet, GROUND, (size_t)width * (size_t)height * 3) : NULL;
}

/* Put rgb (px, px, 3), enlarged, where its top left is at (x0, y0). */
static void sheet_paste(uint8_t *sheet, int width, int x0, int y0, const uint8_t *rgb, int px,
                        int zoom) {
    for (int y = 0; y < px * zoom; y++)
        for (int x = 0; x < px * zoom; x++)
            memcpy(sheet + 3 * ((size_t)(y0 + y) * (size_t)width + (size_t)(x0 + x)),
                   rgb + 3 * (y / zoom * px + x / zoom), 3);
}

int sheet_write(const char *path, const uint16_t *tokens, int n, int px, const real *palette,
                int columns) {
    int zoom = px < CELL ? CELL / px : 1, side = px * zoom + GAP;
    int rows = (n + columns - 1) / columns;
    int width = columns * side + GAP, height = rows * side + GAP;
    uint8_t *sheet = sheet_new(width, height), *rgb = zalloc((size_t)px * (size_t)px, 3);
    int ready = sheet && rgb;
    for (int i = 0; i < n && ready; i++) {
        palette_colours(rgb, tokens + (size_t)i * (size_t)(px * px), (size_t)(px * px), palette);
        sheet_paste(sheet, width, i % columns * side + GAP, i / columns * side + GAP, rgb, px,
                    zoom);
    }
    int bad = !ready || png_write(path, sheet, width, height);
    free(rgb);
    free(sheet);
    return bad ? -1 : 0;
}

void terminal_rows(FILE *f, const uint16_t *tokens, int n, int px, int row, const real *palette) {
    for (int i = 0; i < n; i++) {
        const uint16_t *pixel = tokens + ((size_t)i * (size_t)px + (size_t)row) * (size_t)px;
        for (int x = 0; x < px; x++, pixel++)
            for (int half = 0; half < 2; half++) { // 38: the character's colour, 48: its ground's
                uint8_t rgb[3];
                if (row + half < px) {
                    palette_colours(rgb, pixel + half * px, 1, palette);
                    fprintf(f, "\033[%d;2;%d;%d;%dm", half ? 48 : 38, rgb[0], rgb[1], rgb[2]);
                }
                if (half) fputs("\xe2\x96\x80", f); // U+2580, upper half block
            }
        fputs(i + 1 < n ? "\033[0m " : "\033[0m\n", f);
    }
}

typedef struct {
    real light;
    uint16_t index;
} Swatch;

static int by_light(const void *a, const void *b) {
    const Swatch *x = a, *y = b;
    return x->light != y->light ? (x->light > y->light) - (x->light < y->light)
                                : x->index - y->index;
}

int palette_sheet_write(const char *path, const real *palette, int K, const uint8_t *rgb,
                        const uint16_t *tokens, int n, int px) {
    enum { COLUMNS = 8, SWATCHES = 32 }; // in a row
    int zoom = px < CELL ? CELL / px : 1, side = px * zoom + GAP, width = COLUMNS * side + GAP;
    int swatch = (width - GAP) / SWATCHES, top = (K + SWATCHES - 1) / SWATCHES * swatch + 2 * GAP;
    int pairs = (n + COLUMNS - 1) / COLUMNS, height = top + pairs * (2 * side + GAP);
    size_t T = (size_t)px * (size_t)px;
    uint8_t *sheet = sheet_new(width, height), *after = zalloc(T, 3), colour[3];
    Swatch *order = zalloc((size_t)K, sizeof *order);
    int ready = sheet && after && order;
    for (int k = 0; k < K && ready; k++) {
        const real *c = palette + 3 * k;
        order[k] =
            (Swatch){(real)0.299 * c[0] + (real)0.587 * c[1] + (real)0.114 * c[2], (uint16_t)k};
    }
    if (ready) qsort(order, (size_t)K, sizeof *order, by_light);
    for (int k = 0; k < K && ready; k++) {
        palette_colours(colour, &order[k].index, 1, palette);
        sheet_paste(sheet, width, k % SWATCHES * swatch + GAP, k / SWATCHES * swatch + GAP, colour,
                    1, swatch - 1);
    }
    for (int i = 0; i < n && ready; i++) {
        int x = i % COLUMNS * side + GAP, y = top + i / COLUMNS * (2 * side + GAP);
        palette_colours(after, tokens + (size_t)i * T, T, palette);
        sheet_paste(sheet, width, x, y, rgb + 3 * (size_t)i * T, px, zoom);
        sheet_paste(sheet, width, x, y + side, after, px, zoom);
    }
    int bad = !ready || png_write(path, sheet, width, height);
    free(order);
    free(after);
    free(sheet);
    return bad ? -1 : 0;
}

/* A step of 1, 2 or 5 times a power of ten that divides a range into about five. */
static double tick_step(double range) {
    double step = pow(10, floor(log10(range / 5)));
    return range / step > 25 ? 5 * step : range / step > 10 ? 2 * step : step;
}

/* The range of a chart's axis, widened to whole ticks. */
typedef struct {
    double low, high, step;
} Axis;

static Axis axis_of(const Series *series, int n, int vertical) {
    Axis a = {INFINITY, -INFINITY, 1};
    for (int s = 0; s < n; s++)
        for (int i = 0; i < series[s].n; i++) {
            double v = vertical ? series[s].y[i] : series[s].x[i];
            if (!isfinite(series[s].y[i])) continue;
            a.low = v < a.low ? v : a.low;
            a.high = v > a.high ? v : a.high;
        }
    if (!(a.low < a.high)) a = isfinite(a.low) ? (Axis){a.low - 1, a.low + 1, 1} : (Axis){0, 1, 1};
    a.step = tick_step(a.high - a.low);
    a.low = floor(a.low / a.step) * a.step;
    a.high = ceil(a.high / a.step) * a.step;
    return a;
}

static void svg_text(FILE *f, double x, double y, const char *more, const char *text) {
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, more);
    for (; *text; text++) {
        if (*text == '&') fputs("&amp;", f);
        else if (*text == '<') fputs("&lt;", f);
        else fputc(*text, f);
    }
    fputs("</text>\n", f);
}

enum { CHART_W = 860, CHART_H = 420, LEFT = 70, RIGHT = 190, TOP = 40, BOTTOM = 55 };

static double chart_x(const Axis *a, double v) {
    return LEFT + (v - a->low) / (a->high - a->low) * (CHART_W - LEFT - RIGHT);
}

static double chart_y(const Axis *a, double v) {
    return CHART_H - BOTTOM - (v - a->low) / (a->high - a->low) * (CHART_H - TOP - BOTTOM);
}

static void chart_axes(FILE *f, const Axis *ax, const Axis *ay, const char *x_name,
                       const char *y_name) {
    char text[32], more[96];
    for (double v = ay->low; v < ay->high + ay->step / 2; v += ay->step) {
        double y = chart_y(ay, v);
        fprintf(f, "<path d=\"M%d %.1fH%d\" stroke=\"#ddd\"/>\n", LEFT, y, CHART_W - RIGHT);
        snprintf(text, sizeof text, "%.6g", fabs(v) < ay->step / 2 ? 0 : v);
        svg_text(f, LEFT - 8, y + 4, "text-anchor=\"end\"", text);
    }
    for (double v = ax->low; v < ax->high + ax->step / 2; v += ax->step) {
        fprintf(f, "<path d=\"M%.1f %dv5\" stroke=\"#888\"/>\n", chart_x(ax, v), CHART_H - BOTTOM);
        snprintf(text, sizeof text, "%.6g", fabs(v) < ax->step / 2 ? 0 : v);
        svg_text(f, chart_x(ax, v), CHART_H - BOTTOM + 20, "text-anchor=\"middle\"", text);
    }
    svg_text(f, (LEFT + CHART_W - RIGHT) / 2.0, CHART_H - 12, "text-anchor=\"middle\"", x_name);
    snprintf(more, sizeof more, "text-anchor=\"middle\" transform=\"rotate(-90 18 %d)\"",
             (TOP + CHART_H - BOTTOM) / 2);
    svg_text(f, 18, (TOP + CHART_H - BOTTOM) / 2, more, y_name);
}

int chart_write(const char *path, const char *title, const char *x_name, const char *y_name,
                const Series *series, int n) {
    Axis ax = axis_of(series, n, 0), ay = axis_of(series, n, 1);
    FILE *f = file_create(path);
    if (!f) return -1;
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "font-family=\"sans-serif\" font-size=\"13\" fill=\"#333\">\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
            CHART_W, CHART_H);
    svg_text(f, LEFT, 24, "font-size=\"16\" font-weight=\"bold\"", title);
    chart_axes(f, &ax, &ay, x_name, y_name);
    for (int s = 0; s < n; s++) {
        const Series *line = &series[s];
        int pen_down = 0;
        fprintf(f, "<path fill=\"none\" stroke-width=\"1.8\" stroke=\"%s\" d=\"", line->colour);
        for (int i = 0; i < line->n; i++) {
            if (!isfinite(line->y[i])) continue;
            fprintf(f, "%c%.1f %.1f", pen_down++ ? 'L' : 'M', chart_x(&ax, line->x[i]),
                    chart_y(&ay, line->y[i]));
        }
        fputs("\"/>\n", f);
        for (int i = 0; i < line->n && line->dots; i++)
            if (isfinite(line->y[i]))
                fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%d\" fill=\"%s\"/>\n",
                        chart_x(&ax, line->x[i]), chart_y(&ay, line->y[i]), line->dots,
                        line->colour);
        fprintf(f, "<path d=\"M%d %dh24\" stroke-width=\"3\" stroke=\"%s\"/>\n",
                CHART_W - RIGHT + 16, TOP + 14 + 20 * s, line->colour);
        svg_text(f, CHART_W - RIGHT + 48, TOP + 18 + 20 * s, "", line->name);
    }
    fputs("</svg>\n", f);
    return file_finish(f, path);
}

/* ==== 13 commands ===============================================================================
   The program: options, then one function for each command. Results go to stdout as lines of
   `name value`, everything else to stderr. */

#ifndef IGPT_NO_MAIN

/* One table describes every option: parsing, defaults, ranges, help and suggestions read it. */
typedef struct {
    const char *name; // of the command
    unsigned command; // its bit
    const char *data, *model, *out, *init, *palette, *csv;
    int seed, threads, quiet, preset, objective, pool;
    int n_layer, n_head, n_embd, n_px, n_vocab; // -1: the preset's
    int batch, micro_batch, steps, warmup, eval_every, save_every, resume, recompute;
    int from_scratch, labels_per_class, masks;
    double lr, mask_prob, gen_weight;
    int n, top_k, completions, rows, show, f16;
    double temperature;
    const char *features;
    int concat;
    char **image;
} Options;

enum { TEXT, WHOLE, NUMBER, FLAG, CHOICE, LIST };
// CHOICE: the unit lists the words, an int numbers them. LIST: words up to the next option
enum {
    TRAIN = 1,
    SAMPLE = 2,
    EVAL = 4,
    INFO = 8,
    BENCH = 16,
    FINETUNE = 32,
    PALETTE = 64,
    PROBE = 128,
    COMPLETE = 256,
    ALL = 511,
    DRAWS = TRAIN | SAMPLE | COMPLETE // pictures
};

typedef struct {
    const char *name;
    int type;
    size_t where;        // in Options
    unsigned commands;   // that take it
    const char *initial; // as on the command line; "" leaves -1 or NULL
    const char *unit;
    double low, high;
    const char *help;
} Option;

/* An option whose default differs between commands stands there once for each default. */
#    define AT(field) offsetof(Options, field)
static const Option option_table[] = {
    {"data", TEXT, AT(data), TRAIN | FINETUNE | PROBE | COMPLETE | EVAL | PALETTE, "data/emoji",
     "DIR", 0, 0, "the pictures"},
    {"model", TEXT, AT(model), SAMPLE | COMPLETE | EVAL, "out", "DIR", 0, 0, "a model directory"},
    {"model", TEXT, AT(model), INFO, "", "DIR", 0, 0, "a model directory instead of a preset"},
    {"model", TEXT, AT(model), FINETUNE | PROBE, "out", "DIR", 0, 0,
     "the pre-trained model's directory"},
    {"out", TEXT, AT(out), DRAWS | PROBE, "out", "DIR", 0, 0, "where to write"},
    {"out", TEXT, AT(out), FINETUNE, "out/finetuned", "DIR", 0, 0, "where to write"},
    {"out", TEXT, AT(out), PALETTE, "out/palette", "DIR", 0, 0, "where to write"},
    {"seed", WHOLE, AT(seed), DRAWS | FINETUNE | PROBE | PALETTE, "1", "N", 0, INT_MAX,
     "of all random numbers"},
    {"threads", WHOLE, AT(threads), ALL, "0", "N", 0, 1024, "to compute with; 0: all cores"},
    {"quiet", FLAG, AT(quiet), ALL, "", "", 0, 0, "no progress on stderr"},
    {"preset", CHOICE, AT(preset), TRAIN | INFO | BENCH | PALETTE, "tiny",
     "tiny|igpt-s|igpt-m|igpt-l|igpt-xl", 0, 0, "sets what is not given of the rest"},
    {"n-layer", WHOLE, AT(n_layer), TRAIN | INFO | BENCH, "", "N", 1, 1024, "layers"},
    {"n-head", WHOLE, AT(n_head), TRAIN | INFO | BENCH, "", "N", 1, 1024, "attention heads"},
    {"n-embd", WHOLE, AT(n_embd), TRAIN | INFO | BENCH, "", "N", 1, 16384, "width of the network"},
    {"n-px", WHOLE, AT(n_px), TRAIN | INFO | BENCH | PALETTE, "", "N", 1, 256,
     "side of the pictures in pixels"},
    {"n-vocab", WHOLE, AT(n_vocab), TRAIN | INFO | BENCH | PALETTE, "", "N", 2, 65535,
     "colours in the palette"},
    {"objective", CHOICE, AT(objective), TRAIN | INFO, "ar", "ar|bert", 0, 0,
     "predict each pixel from those before it, or masked pixels from all others"},
    {"mask-prob", NUMBER, AT(mask_prob), TRAIN | FINETUNE | PROBE | EVAL, "0.15", "X", 0.001, 1,
     "bert: share of the pixels that are masked"},
    {"masks", WHOLE, AT(masks), FINETUNE | PROBE | EVAL, "5", "N", 1, 10000,
     "bert: random masks that a test averages over"},
    {"gen-weight", NUMBER, AT(gen_weight), FINETUNE, "1", "X", 0, 1e6,
     "of L_GEN beside L_CLF; 0: L_CLF alone"},
    {"labels-per-class", WHOLE, AT(labels_per_class), FINETUNE, "0", "N", 0, INT_MAX,
     "learn from only N pictures of each class, drawn by the seed; 0: from all"},
    {"labels-per-class", WHOLE, AT(labels_per_class), PROBE, "0", "N", 0, INT_MAX,
     "train on N labels of each class only, mean of 5 draws; 0: on all"},
    {"from-scratch", FLAG, AT(from_scratch), FINETUNE, "", "", 0, 0,
     "fresh weights instead of the model's, for comparison"},
    {"batch", WHOLE, AT(batch), TRAIN | INFO | BENCH, "", "N", 1, 65536, "images in a step"},
    {"batch", WHOLE, AT(batch), FINETUNE, "32", "N", 1, 65536, "images in a step"},
    {"micro-batch", WHOLE, AT(micro_batch), TRAIN | INFO | BENCH, "", "N", 1, 65536,
     "images in a pass; gradients add up to the batch"},
    {"micro-batch", WHOLE, AT(micro_batch), FINETUNE, "", "N", 1, 65536,
     "images in a pass; default as many as take about 50 MB, near what caches hold"},
    {"recompute", FLAG, AT(recompute), TRAIN | FINETUNE | INFO, "", "", 0, 0,
     "keep only each block's input and run the block again in backward: less memory"},
    {"steps", WHOLE, AT(steps), TRAIN, "", "N", 1, INT_MAX / 2, "steps of Adam"},
    {"steps", WHOLE, AT(steps), FINETUNE, "300", "N", 1, INT_MAX / 2, "steps of Adam"},
    {"lr", NUMBER, AT(lr), TRAIN, "", "X", 0, 1, "peak learning rate"},
    {"lr", NUMBER, AT(lr), FINETUNE, "0.001", "X", 0, 1, "peak learning rate"},
    {"warmup", WHOLE, AT(warmup), TRAIN | FINETUNE, "", "N", 0, INT_MAX / 2,
     "steps until the peak; default one epoch, at most half the steps"},
    {"eval-every", WHOLE, AT(eval_every), TRAIN, "", "N", 1, INT_MAX,
     "steps from one test and sheet of samples to the next; default steps / 10"},
    {"eval-every", WHOLE, AT(eval_every), FINETUNE, "", "N", 1, INT_MAX,
     "steps from one validation to the next, the best of which is kept; default steps / 10"},
    {"save-every", WHOLE, AT(save_every), TRAIN | FINETUNE, "", "N", 1, INT_MAX,
     "steps from one checkpoint to the next; default eval-every"},
    {"resume", FLAG, AT(resume), TRAIN | FINETUNE, "", "", 0, 0,
     "go on with the run in --out, bit for bit"},
    {"init", TEXT, AT(init), TRAIN, "", "DIR", 0, 0, "start from this model's weights and palette"},
    {"palette", TEXT, AT(palette), TRAIN | PALETTE, "", "FILE", 0, 0,
     "colours of this preprocessor_config.json or .npy file instead of k-means"},
    {"pool", CHOICE, AT(pool), PROBE, "mean", "mean|none", 0, 0,
     "features of a picture: the mean over positions, or all positions side by side"},
    {"concat", WHOLE, AT(concat), PROBE, "1", "M", 1, 1025,
     "also join M neighbouring layers around the best one"},
    {"features", TEXT, AT(features), PROBE, "", "FILE.npy", 0, 0,
     "write all layers' features, and labels to FILE.labels.npy"},
    {"f16", FLAG, AT(f16), TRAIN | FINETUNE, "", "", 0, 0,
     "write the weights as F16, in half the space"},
    {"n", WHOLE, AT(n), SAMPLE, "40", "N", 1, 100000, "pictures"},
    {"n", WHOLE, AT(completions), COMPLETE, "5", "N", 1, 1000, "completions of each picture"},
    {"image", LIST, AT(image), COMPLETE, "", "FILE ...", 0, 0,
     "complete these PPM or PGM files instead of eight test pictures"},
    {"rows", WHOLE, AT(rows), COMPLETE, "", "N", 0, 256, "rows that are given; default half"},
    {"temperature", NUMBER, AT(temperature), DRAWS, "0.85", "X", 0.01, 100,
     "above 1 wilder, below 1 tamer"},
    {"top-k", WHOLE, AT(top_k), DRAWS, "0", "N", 0, 65535,
     "draw only from the N most probable colours; 0: from all"},
    {"show", WHOLE, AT(show), DRAWS, "", "0|1", 0, 1,
     "draw in the terminal; default 1 where COLORTERM says that it has 24-bit colour"},
    {"csv", TEXT, AT(csv), BENCH, "", "FILE", 0, 0, "write the figures there, too"},
};
enum { N_OPTIONS = sizeof option_table / sizeof *option_table };

static const struct {
    const char *name;
    int n_layer, n_embd, n_head, n_px, n_vocab, batch, micro_batch, steps;
    double lr;
} presets[] = {
    // in the order of --preset's words
    {"tiny", 4, 128, 4, 16, 64, 16, 4, 1200, 0.004},
    {"igpt-s", 24, 512, 8, 32, 512, 128, 4, 1000000, 0.003},
    {"igpt-m", 36, 1024, 8, 32, 512, 128, 2, 1000000, 0.003},
    {"igpt-l", 48, 1536, 16, 32, 512, 128, 1, 1000000, 0.001},
    {"igpt-xl", 60, 3072, 16, 64, 512, 64, 1, 2000000, 0.0003},
};

typedef struct {
    const char *name, *summary;
    unsigned bit;
    int (*run)(Options *);
} Command;

static char given[N_OPTIONS]; // on the command line

/* The option of this name if it is on the command line, or NULL. */
static const Option *is_given(const char *name) {
    for (int i = 0; i < N_OPTIONS; i++)
        if (given[i] && !strcmp(option_table[i].name, name)) return &option_table[i];
    return NULL;
}

/* Word number k of "a|b|c"; NULL where there are fewer. */
static const char *word_of(const char *words, int k) {
    for (; k > 0 && words; k--) {
        words = strchr(words, '|');
        if (words) words++;
    }
    return words;
}

static const char *option_text(const Options *o, const Option *option, char text[32]) {
    const char *at = (const char *)o + option->where;
    if (option->type == TEXT) return *(const char *const *)(const void *)at;
    int whole = option->type == NUMBER ? 0 : *(const int *)(const void *)at;
    if (option->type == NUMBER) snprintf(text, 32, "%.17g", *(const double *)(const void *)at);
    else if (option->type == CHOICE)
        snprintf(text, 32, "%.*s", (int)strcspn(word_of(option->unit, whole), "|"),
                 word_of(option->unit, whole));
    else snprintf(text, 32, "%d", whole);
    return text;
}

/* The console: notes, pictures and one moving progress line, all on stderr. */
static struct {
    int quiet, terminal, show, pending;
    double last;
} console;

static void progress_clear(void) {
    if (console.pending) fputs("\r\033[K", stderr);
    console.pending = 0;
}

static void note(const char *format, ...) {
    va_list args;
    if (console.quiet) return;
    progress_clear();
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

/* On a terminal ten times a second over itself; elsewhere a line every ten seconds. */
static void progress(const char *format, ...) {
    va_list args;
    double now = seconds_now();
    if (console.quiet || now - console.last < (console.terminal ? 0.1 : 10)) return;
    console.last = now;
    if (console.terminal) fputs("\r\033[K", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    if (!console.terminal) fputc('\n', stderr);
    console.pending = console.terminal;
    fflush(stderr);
}

static int takes_colour(void) {
    const char *is = getenv("COLORTERM");
    const char *no = getenv("NO_COLOR"); // says no-color.org: set, and not empty
    return console.terminal && !(no && *no) && is &&
           (!strcmp(is, "truecolor") || !strcmp(is, "24bit"));
}

/* What is being drawn, for those who wait: how far it is, and the pictures that fit side by side,
   growing. A line of characters takes two rows of pixels. */
typedef struct {
    const Model *model;
    const uint16_t *tokens; // (n, T)
    int n;
} Drawing;

static void show_row(void *context, const uint16_t *tokens, int B, int rows) {
    const Drawing *d = context;
    int px = d->model->config.n_px, across = (terminal_columns() + 1) / (px + 1);
    int first = (int)((tokens - d->tokens) / (px * px));
    if (console.show && (rows % 2 == 0 || rows == px)) {
        progress_clear();
        terminal_rows(stderr, tokens,
                      across < 1   ? 1
                      : across < B ? across
                                   : B,
                      px, (rows - 1) & ~1, d->model->palette);
        if (rows == px) fputc('\n', stderr);
    }
    progress("drawing %d to %d of %d, row %d of %d", first + 1, first + B, d->n, rows, px);
}

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

/* The first Ctrl-C asks for an orderly end, the second ends at once. */
static void catch_interrupt(void) {
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* "3:07", or "2:03:07". */
static const char *clock_text(double seconds) {
    static char text[2][32];
    static int turn;
    int s = (int)(seconds + 0.5);
    turn = !turn;
    if (s >= 3600) snprintf(text[turn], 32, "%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
    else snprintf(text[turn], 32, "%d:%02d", s / 60, s % 60);
    return text[turn];
}

/* Fill what was not given from the preset. */
static void preset_apply(Options *o) {
    const struct {
        int *value, preset;
    } fields[] = {
        {&o->n_layer, presets[o->preset].n_layer}, {&o->n_embd, presets[o->preset].n_embd},
        {&o->n_head, presets[o->preset].n_head},   {&o->n_px, presets[o->preset].n_px},
        {&o->n_vocab, presets[o->preset].n_vocab}, {&o->batch, presets[o->preset].batch},
        {&o->steps, presets[o->preset].steps}};
    int most = presets[o->preset].micro_batch;
    for (size_t k = 0; k < sizeof fields / sizeof *fields; k++)
        if (*fields[k].value < 0) *fields[k].value = fields[k].preset;
    if (o->micro_batch < 0) o->micro_batch = most;
    if (o->micro_batch > o->batch) o->micro_batch = o->batch;
    if (o->lr < 0) o->lr = presets[o->preset].lr;
}

/* A folder to write to, made where it is missing; found out now rather than after the work. */
static int folder_check(const char *dir) {
    if (folder_make(dir)) return -1;
    return access(dir, W_OK) ? fail("cannot write to the folder %s: %s", dir, strerror(errno)) : 0;
}

static Config config_of(const Options *o) {
    return (Config){.n_px = o->n_px,
                    .n_vocab = o->n_vocab,
                    .n_embd = o->n_embd,
                    .n_head = o->n_head,
                    .n_layer = o->n_layer,
                    .objective = o->objective};
}

/* The options that say what a model is, from a model that is there: those given must agree. */
static int options_follow(Options *o, const Config *c, const char *dir) {
    const struct {
        const char *name;
        int *option, value;
    } sizes[] = {{"n-px", &o->n_px, c->n_px},          {"n-vocab", &o->n_vocab, c->n_vocab},
                 {"n-embd", &o->n_embd, c->n_embd},    {"n-head", &o->n_head, c->n_head},
                 {"n-layer", &o->n_layer, c->n_layer}, {"objective", &o->objective, c->objective}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const Option *option = is_given(sizes[i].name);
        char text[32];
        int wanted = *sizes[i].option;
        *sizes[i].option = sizes[i].value;
        if (option && wanted != sizes[i].value)
            return fail("the model in %s has --%s %s", dir, option->name,
                        option_text(o, option, text));
    }
    return 0;
}

/* The entropy of a set's colours, in nats: what a model scores that only counts them. */
static double unigram_nats(const Images *set, int K) {
    size_t n = (size_t)set->n * (size_t)set->px * (size_t)set->px,
           *count = zalloc((size_t)K, sizeof *count);
    double nats = 0;
    if (!count) return NAN;
    for (size_t i = 0; i < n; i++) count[set->tokens[i]]++;
    for (int k = 0; k < K; k++)
        if (count[k]) nats -= (double)count[k] / (double)n * log((double)count[k] / (double)n);
    free(count);
    return nats;
}

/* What a model scores on a set: L_GEN in nats per position; L_CLF in nats per picture and the share
   of pictures whose class was right, both NaN where they were not asked for. */
typedef struct {
    double gen, clf, accuracy;
} Scores;

/* Masks of tests: draw k of picture i, the same ones in every test. */
enum { TEST_SEED = 0x7e57 };

/* B images at a time. classes: of L_CLF, too; all pictures have labels. A BERT model sees each
   picture under `masks` masks: the mean of its losses, and of its class logits, counts. */
static int evaluate(Scores *scores, const Model *m, Activations *acts, const Images *set, int B,
                    int classes, int masks, double mask_prob) {
    size_t T = (size_t)set->px * (size_t)set->px, C = (size_t)m->config.n_class;
    int bert = m->config.objective == OBJECTIVE_BERT, draws = bert ? masks : 1, correct = 0;
    uint8_t *mask = zalloc((size_t)B * T, sizeof *mask);
    real *logits = zalloc((size_t)B * C, sizeof *logits); // (B, C), mean over draws
    int ready = mask && logits;
    double gen = 0, clf = 0;
    for (int i = 0; i < set->n && ready; i += B) {
        int n = set->n - i < B ? set->n - i : B;
        Batch batch = {.B = n, .tokens = set->tokens + (size_t)i * T, .mask = bert ? mask : NULL};
        memset(logits, 0, (size_t)n * C * sizeof *logits);
        for (int k = 0; k < draws; k++) {
            for (int b = 0; b < n && bert; b++)
                bert_mask(mask + (size_t)b * T, (int)T, mask_prob, TEST_SEED,
                          (uint64_t)k << 32 | (uint64_t)(i + b));
            gen += objective(m, acts, &batch, 1, 0, 0, NULL).gen;
            if (classes) classify(m, acts, n);
            for (size_t j = 0; classes && j < (size_t)n * C; j++)
                logits[j] += acts->classes[j] / (real)draws;
        }
        for (int b = 0; b < n && classes; b++)
            clf += class_loss(logits + (size_t)b * C, (int)C, set->labels[i + b], &correct);
    }
    *scores = (Scores){gen / draws / set->n, classes ? clf / set->n : NAN,
                       classes ? (double)correct / set->n : NAN};
    free(logits);
    free(mask);
    return ready ? 0 : -1;
}

/* The test accuracy of whoever always names the commonest class of the training pictures. */
static double majority_accuracy(const Dataset *data) {
    int best = 0, most = -1, hits = 0;
    for (int k = 0; k < data->n_class; k++) {
        int count = 0;
        for (int i = 0; i < data->train.n; i++) count += data->train.labels[i] == k;
        if (count > most) best = k, most = count;
    }
    for (int i = 0; i < data->test.n; i++) hits += data->test.labels[i] == best;
    return (double)hits / data->test.n;
}

static void print_scores(const Scores *s, const Images *test, double majority, const Config *c) {
    printf("nats_per_pixel %.5f\nbits_per_dim %.5f\nunigram_nats %.5f\n", s->gen, s->gen / log(2),
           unigram_nats(test, c->n_vocab));
    if (isfinite(s->clf))
        printf("class_nats %.5f\naccuracy %.4f\nmajority_accuracy %.4f\n", s->clf, s->accuracy,
               majority);
}

/* Whether the model's class head is for the data's classes. */
static int classes_agree(const Model *m, const Dataset *data) {
    int same = m->config.n_class == data->n_class && data->n_class > 0;
    for (int k = 0; k < data->n_class && same; k++)
        same = !strcmp(m->class_names[k], data->class_names[k]);
    return same;
}

enum { TRAIN_SAMPLES = 40, SAMPLE_BATCH = 32, SHEET_COLUMNS = 8, LOG_ROWS = 200 };
enum { PROCESS_BYTES = 4000000, PALETTE_BYTES = ALL_COLOURS * sizeof(uint32_t) }; // colours_count

/* Whether a run draws pictures on the way. */
static int draws_samples(const Options *o) {
    return o->command != FINETUNE && o->objective == OBJECTIVE_AR;
}

/* How many pictures, `most` or fewer, can be drawn at once with a cache of at most `bytes`. */
static int sampler_images(const Config *c, int most, double bytes) {
    double each = (double)(sampler_bytes(c, 2) - sampler_bytes(c, 1));
    return bytes / each > most ? most : bytes / each > 1 ? (int)(bytes / each) : 1;
}

/* Of large models, whose cache and time would hold training up, fewer pictures are drawn. */
static int train_samples(const Config *c) {
    return sampler_images(c, TRAIN_SAMPLES, 256e6);
}

static int sample_batch(const Config *c) {
    return sampler_images(c, SAMPLE_BATCH, 4e9);
}

/* The process itself and each thread's panels. */
static double process_bytes(void) {
    return PROCESS_BYTES + threads_get() * (double)(sizeof packed_a + sizeof packed_b);
}

/* The peak memory of training and of sampling, pictures aside: the process, parameters (for
   training also gradients and two moments, for fine-tuning the best so far), activations, the
   sampler's cache. A small model needs less than its palette did before. */
static double train_bytes(const Options *o, const Config *c, size_t n_params) {
    double copies = o->command == FINETUNE ? 5 : 4, model = copies * (double)n_params;
    model = model * sizeof(real) +
            (double)activations_bytes(c, o->micro_batch, o->recompute ? KEEP_INPUTS : KEEP_ALL) +
            (draws_samples(o) ? (double)sampler_bytes(c, train_samples(c)) : 0);
    int counts = o->command != FINETUNE && !o->init && !o->resume && !o->palette && !o->model;
    return process_bytes() + (counts && model < PALETTE_BYTES ? PALETTE_BYTES : model);
}

static double sample_bytes(const Config *c, size_t n_params) {
    return process_bytes() + (double)n_params * sizeof(real) +
           (double)sampler_bytes(c, sample_batch(c));
}

/* A run of pre-training or fine-tuning: everything that a step needs, laid out once. Pre-training
   minimises L_GEN and looks at the test pictures on the way. Fine-tuning minimises gen_weight x
   L_GEN + L_CLF, looks at the validation pictures, and keeps the weights that did best there. */
enum { TRAIN_GEN, HELD_GEN, TRAIN_CLF, HELD_CLF, ACCURACY, N_SCORES, PRETRAIN_SCORES = 2 };

typedef struct {
    int step;
    double seconds, lr, score[N_SCORES]; // NaN: not measured here
} Row;

typedef struct {
    const Options *o;
    Model model;
    Dataset data;
    Images validation;  // of fine-tuning, split off data.train
    const Images *held; // what is evaluated on the way: validation or data.test
    Activations *acts;
    Sampler *sampler;                        // NULL: no pictures are drawn
    double gen_weight, clf_weight, majority; // the last: accuracy of naming the commonest class
    real *grads, *first, *second;            // gradient and Adam's moments, laid out as params
    real *best;                              // the best weights so far; NULL in pre-training
    double best_accuracy;                    // of them; -1: none yet
    int best_step;
    uint16_t *tokens;  // (micro_batch + 1, T); the last: room for augmentation
    uint8_t *mask;     // (micro_batch, T)
    int *labels;       // (micro_batch)
    uint16_t *samples; // (n_samples, T)
    int n_samples;
    Drawing drawing;   // of samples
    int *order, epoch; // of the training images in this epoch
    int step;          // steps done
    Losses sum;        // since the last row of the log
    int sum_steps;
    double seconds, began; // spent before a resume; when this process began
    Row *rows;
    int n_rows, room;
} Run;

static void run_free(Run *r) {
    model_free(&r->model);
    dataset_free(&r->data);
    free(r->validation.tokens);
    free(r->validation.labels);
    free(r->acts);
    free(r->sampler);
    free(r->grads);
    free(r->best);
    free(r->tokens);
    free(r->mask);
    free(r->labels);
    free(r->samples);
    free(r->order);
    free(r->rows);
}

/* Image number `index`, counted over all epochs, into place b of the pass: flipped at random, for
   fine-tuning also padded and cropped at random; its label; for BERT its mask. */
static void next_image(Run *r, uint64_t index, int b) {
    const Images *set = &r->data.train;
    size_t T = (size_t)set->px * (size_t)set->px;
    uint64_t seed = (uint64_t)r->o->seed;
    int epoch = (int)(index / (uint64_t)set->n);
    if (epoch != r->epoch) {
        for (int i = 0; i < set->n; i++) r->order[i] = i;
        random_shuffle(r->order, set->n, seed, stream_of(FOR_ORDER, (uint64_t)epoch));
        r->epoch = epoch;
    }
    int i = r->order[index % (uint64_t)set->n], pad = r->best ? set->px / 8 : 0,
        window = 2 * pad + 1;
    const uint16_t *image = set->tokens + (size_t)i * T;
    uint16_t *flipped = r->tokens + (size_t)r->o->micro_batch * T, *out = r->tokens + (size_t)b * T;
    if (random_bits(seed, stream_of(FOR_FLIP, 0), index) & 1) image_flip(image, flipped, set->px);
    else memcpy(flipped, image, T * sizeof *image);
    uint64_t crop = random_bits(seed, stream_of(FOR_CROP, 0), index) >> 32;
    image_crop_padded(flipped, out, set->px, pad, (int)(crop % (uint64_t)window),
                      (int)(crop / (uint64_t)window % (uint64_t)window));
    r->labels[b] = set->labels ? set->labels[i] : -1;
    if (r->model.config.objective == OBJECTIVE_BERT)
        bert_mask(r->mask + (size_t)b * T, (int)T, r->o->mask_prob, seed, index);
}

/* One step of Adam on the next batch; returns its mean losses. */
static Losses train_step(Run *r) {
    const Options *o = r->o;
    int bert = r->model.config.objective == OBJECTIVE_BERT;
    Losses mean = {0, 0, 0};
    for (int i = 0; i < o->batch; i += o->micro_batch) {
        int n = o->batch - i < o->micro_batch ? o->batch - i : o->micro_batch;
        for (int b = 0; b < n; b++)
            next_image(r, (uint64_t)r->step * (uint64_t)o->batch + (uint64_t)(i + b), b);
        Batch batch = {n, r->tokens, bert ? r->mask : NULL, r->labels};
        Losses pass = objective(&r->model, r->acts, &batch, r->gen_weight, r->clf_weight,
                                1.0 / o->batch, r->grads);
        mean.gen += pass.gen / o->batch;
        mean.clf += pass.clf / o->batch;
    }
    adam_step(r->model.params, r->grads, r->first, r->second, r->model.n_params, r->step + 1,
              learning_rate(r->step, o->steps, o->warmup, o->lr));
    r->step++;
    return mean;
}

/* The training state: what --resume needs, bit for bit. Options are kept as text. */

/* Options that a resumed run takes over: the command's, but for where and how it runs. */
static int is_kept(const Option *option, const Options *o) {
    static const char *const own[] = {"model",  "out",  "threads", "quiet",
                                      "resume", "init", "palette", "show"};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (!strcmp(option->name, own[i])) return 0;
    return (option->commands & o->command) != 0;
}

static int state_save(const Run *r, const char *path) {
    const Model *m = &r->model;
    const char *dtype = sizeof(real) == 8 ? "F64" : "F32", *metadata[2 * N_OPTIONS + 12];
    char numbers[N_OPTIONS + 4][32];
    int n = 0;
    for (int i = 0; i < N_OPTIONS; i++) {
        if (!is_kept(&option_table[i], r->o)) continue;
        metadata[n++] = option_table[i].name;
        metadata[n++] = option_text(r->o, &option_table[i], numbers[i]);
    }
    snprintf(numbers[N_OPTIONS], 32, "%d", r->step);
    snprintf(numbers[N_OPTIONS + 1], 32, "%.3f", r->seconds + seconds_now() - r->began);
    snprintf(numbers[N_OPTIONS + 2], 32, "%d", r->best_step);
    snprintf(numbers[N_OPTIONS + 3], 32, "%.17g", r->best_accuracy);
    metadata[n++] = "command", metadata[n++] = r->o->name;
    metadata[n++] = "step", metadata[n++] = numbers[N_OPTIONS];
    metadata[n++] = "seconds", metadata[n++] = numbers[N_OPTIONS + 1];
    metadata[n++] = "best_step", metadata[n++] = numbers[N_OPTIONS + 2];
    metadata[n++] = "best_accuracy", metadata[n++] = numbers[N_OPTIONS + 3];
    metadata[n] = NULL;
    const int64_t size = (int64_t)m->n_params, K = m->config.n_vocab;
    const Stored tensors[] = {
        {.name = "params", .dtype = dtype, .n_dim = 1, .shape = {size}, .data = m->params},
        {.name = "adam.first", .dtype = dtype, .n_dim = 1, .shape = {size}, .data = r->first},
        {.name = "adam.second", .dtype = dtype, .n_dim = 1, .shape = {size}, .data = r->second},
        {.name = "palette", .dtype = dtype, .n_dim = 2, .shape = {K, 3}, .data = m->palette},
        {.name = "best", .dtype = dtype, .n_dim = 1, .shape = {size}, .data = r->best},
    };
    return safetensors_write(path, tensors, r->best ? 5 : 4, metadata);
}

/* Give an option its value; -1 and a sentence for one that does not fit. */
static int option_set(Options *options, const Option *option, const char *value) {
    char *at = (char *)options + option->where, *end;
    if (option->type == TEXT) {
        if (!*value) return fail("--%s needs a value that is not empty", option->name);
        if (strlen(value) > PATH_SIZE / 2) return fail("--%s: the path is too long", option->name);
        *(const char **)(void *)at = value;
        return 0;
    }
    if (option->type == CHOICE) {
        int k = 0;
        size_t length = strlen(value);
        const char *word;
        while ((word = word_of(option->unit, k)) &&
               (strcspn(word, "|") != length || strncmp(word, value, length)))
            k++;
        *(int *)(void *)at = k;
        return word ? 0 : fail("--%s takes %s, not \"%s\"", option->name, option->unit, value);
    }
    double number = strtod(value, &end);
    if (end == value || *end || !isfinite(number))
        return fail("--%s takes a number, not \"%s\"", option->name, value);
    if (option->type == NUMBER) {
        if (number < option->low || number > option->high)
            return fail("--%s takes a number from %g to %g, not %s", option->name, option->low,
                        option->high, value);
        *(double *)(void *)at = number;
        return 0;
    }
    double high = option->type == FLAG ? 1 : option->high;
    if (number != floor(number) || number < option->low || number > high)
        return fail("--%s takes a whole number from %.0f to %.0f, not %s", option->name,
                    option->low, high, value);
    *(int *)(void *)at = (int)number;
    return 0;
}

/* The options of the run that wrote the state, but for those given now. */
static int options_resume(Options *o, const Safetensors *state) {
    static const char *const needed[] = {"step", "seconds", "best_step", "best_accuracy"};
    const char *command = safetensors_metadata(state, "command");
    if (!command || strcmp(command, o->name))
        return fail("%s: is no run of igpt %s", state->path, o->name);
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *option = &option_table[i];
        if (!is_kept(option, o) || given[i]) continue;
        const char *value = safetensors_metadata(state, option->name);
        if (!value) return fail("%s: metadata %s is missing", state->path, option->name);
        if (option_set(o, option, value)) return -1;
    }
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (!safetensors_metadata(state, needed[i]))
            return fail("%s: metadata %s is missing", state->path, needed[i]);
    return 0;
}

static int state_read(Safetensors *file, const char *name, int64_t count, real *out) {
    const Stored *s = safetensors_find(file, name);
    if (!s || s->count != count)
        return fail("%s: tensor %s is missing or has not %lld elements", file->path, name,
                    (long long)count);
    return safetensors_read(file, s, out);
}

/* log.csv: the columns that the command fills; fields without a value stay empty. */

static const char *log_header(const Options *o, int *n_scores) {
    *n_scores = o->command == FINETUNE ? N_SCORES : PRETRAIN_SCORES;
    return o->command == FINETUNE ? "step,seconds,lr,train_nats,validation_nats,train_class_nats,"
                                    "validation_class_nats,validation_accuracy"
                                  : "step,seconds,lr,train_nats,test_nats";
}

/* The rows of an earlier log.csv up to the step that is resumed. */
static void log_read(Run *r, const char *path) {
    FILE *f = fopen(path, "r");
    char line[256];
    while (f && fgets(line, sizeof line, f)) { // where there are too many, the newest stay
        Row row;
        int used = 0;
        for (int k = 0; k < N_SCORES; k++) row.score[k] = NAN;
        if (sscanf(line, "%d,%lf,%lf%n", &row.step, &row.seconds, &row.lr, &used) != 3) continue;
        const char *at = line + used;
        for (int k = 0; k < N_SCORES && *at == ','; k++) {
            sscanf(++at, "%lf", &row.score[k]); // leaves NaN where the field is empty
            at += strcspn(at, ",");
        }
        if (row.step > r->step) continue;
        if (r->n_rows == r->room) memmove(r->rows, r->rows + 1, (size_t)--r->n_rows * sizeof row);
        r->rows[r->n_rows++] = row;
    }
    if (f) fclose(f);
}

static int log_write(const Run *r, const char *path) {
    FILE *f = file_create(path);
    int n_scores;
    if (!f) return -1;
    fprintf(f, "%s\n", log_header(r->o, &n_scores));
    for (const Row *row = r->rows; row < r->rows + r->n_rows; row++) {
        fprintf(f, "%d,%.3f,%.6g", row->step, row->seconds, row->lr);
        for (int k = 0; k < n_scores; k++)
            if (isfinite(row->score[k])) fprintf(f, ",%.5f", row->score[k]);
            else fputc(',', f);
        fputc('\n', f);
    }
    return file_finish(f, path);
}

static int loss_chart(const Run *r, const char *path) {
    int fine = r->o->command == FINETUNE, lines = fine ? ACCURACY : PRETRAIN_SCORES;
    size_t n = (size_t)r->n_rows;
    double *x = zalloc((ACCURACY + 1) * n, sizeof *x), *y = x + n; // (n), (lines, n)
    if (!x) return -1;
    for (size_t i = 0; i < n; i++) {
        x[i] = r->rows[i].step;
        for (int k = 0; k < lines; k++) y[(size_t)k * n + i] = r->rows[i].score[k];
    }
    const Series series[] = {{fine ? "training, L_GEN" : "training", "#7aa6d6", (int)n, x, y, 0},
                             {fine ? "validation, L_GEN" : "test", "#c0392b", (int)n, x, y + n, 3},
                             {"training, L_CLF", "#8fc28a", (int)n, x, y + 2 * n, 0},
                             {"validation, L_CLF", "#b8860b", (int)n, x, y + 3 * n, 3}};
    int bad = chart_write(path, "Loss", "step", fine ? "nats" : "nats per pixel", series, lines);
    free(x);
    return bad;
}

/* The palette in the file that --palette names, or one that k-means finds in the training pictures;
   its size becomes o->n_vocab. To be given back with free(); NULL: failed. */
static real *palette_make(Options *o, const Images *train, int *K) {
    real *palette = NULL;
    if (o->palette) {
        palette = palette_read(o->palette, K);
        if (!palette || !is_given("n-vocab") || *K == o->n_vocab) return palette;
        fail("%s has %d colours, not --n-vocab %d", o->palette, *K, o->n_vocab);
    } else if ((palette = zalloc((size_t)o->n_vocab * 3, sizeof *palette))) {
        note("palette: k-means, %d colours", o->n_vocab);
        *K = palette_build(palette, o->n_vocab, train->rgb,
                           (size_t)train->n * (size_t)train->px * (size_t)train->px,
                           (uint64_t)o->seed, PALETTE_ITERATIONS, NULL);
        if (*K >= 0 && *K < o->n_vocab)
            note("palette: %d colours are all there are, not %d", *K, o->n_vocab);
        if (*K >= 0) return palette;
    }
    free(palette);
    return NULL;
}

/* A new network, on the palette that the options ask for. */
static int run_new_model(Run *r, Options *o) {
    real *palette = palette_make(o, &r->data.train, &o->n_vocab);
    int bad = !palette || model_init(&r->model, config_of(o));
    if (!bad) {
        memcpy(r->model.palette, palette, (size_t)o->n_vocab * 3 * sizeof *palette);
        model_randomise(&r->model, (uint64_t)o->seed);
    }
    free(palette);
    return bad ? -1 : 0;
}

/* Fine-tuning: give the model a head for the data's classes. One that it has already stays, and its
   weights stay, unless they are to be fresh. A head starts at zero and is the last tensor. */
static int run_head(Run *r) {
    Model new, *m = &r->model;
    if (r->data.n_class < 2)
        return fail("%s: %d classes, which leaves nothing to learn", r->o->data, r->data.n_class);
    if (classes_agree(m, &r->data) && !r->o->from_scratch) return 0;
    Config c = m->config;
    c.n_class = r->data.n_class;
    if (model_init(&new, c)) return -1;
    int bad = 0;
    for (int k = 0; k < c.n_class && !bad; k++) bad = class_rename(&new, k, r->data.class_names[k]);
    memcpy(new.palette, m->palette, 3 * (size_t)c.n_vocab * sizeof *m->palette);
    if (r->o->from_scratch) model_randomise(&new, (uint64_t)r->o->seed);
    else memcpy(new.params, m->params, new.tensors[new.n_tensors - 1].offset * sizeof *m->params);
    model_free(m);
    *m = new;
    return bad;
}

/* Weights, moments and log as the run in --out left them. */
static int run_resume(Run *r, Safetensors *state) {
    const Model *m = &r->model;
    int64_t n = (int64_t)m->n_params;
    if (state_read(state, "params", n, m->params) || state_read(state, "adam.first", n, r->first) ||
        state_read(state, "adam.second", n, r->second) ||
        (r->best && state_read(state, "best", n, r->best)))
        return -1;
    r->step = atoi(safetensors_metadata(state, "step"));
    r->seconds = atof(safetensors_metadata(state, "seconds"));
    r->best_step = atoi(safetensors_metadata(state, "best_step"));
    r->best_accuracy = atof(safetensors_metadata(state, "best_accuracy"));
    log_read(r, file_in(r->o->out, "log.csv"));
    note("resuming at step %d of %d", r->step, r->o->steps);
    return 0;
}

/* The model and the pictures as its tokens. */
static int run_load(Run *r, Options *o, Safetensors *state) {
    int fine = o->command == FINETUNE;
    const char *from = state->file ? o->out : fine ? o->model : o->init;
    if (from && (model_load(&r->model, from) || options_follow(o, &r->model.config, from)))
        return -1;
    if (dataset_read(&r->data, o->data, o->n_px)) return -1;
    note("%s: %d training and %d test pictures, %d classes, at %d x %d", o->data, r->data.train.n,
         r->data.test.n, r->data.n_class, o->n_px, o->n_px);
    if (folder_check(o->out) || (!from && run_new_model(r, o))) return -1;
    if (fine && run_head(r)) return -1;
    const Model *m = &r->model;
    int K = m->config.n_vocab;
    if (state->file && state_read(state, "palette", 3 * (int64_t)K, m->palette)) return -1;
    if (images_quantise(&r->data.train, m->palette, K) ||
        images_quantise(&r->data.test, m->palette, K))
        return -1;
    r->held = fine ? &r->validation : &r->data.test;
    if (!fine) return 0;
    r->majority = majority_accuracy(&r->data);
    if (images_split(&r->data.train, &r->validation, r->data.n_class, o->labels_per_class,
                     (uint64_t)o->seed))
        return fail("%s: %s", o->data, error_text());
    note("fine-tuning on %d pictures, choosing by %d others", r->data.train.n, r->validation.n);
    return 0;
}

/* Fill in what depends on the model and the data. */
static void run_defaults(const Run *r, Options *o) {
    double image = (double)o->n_px * o->n_px * o->n_embd * o->n_layer; // 40 bytes each are kept
    if (o->micro_batch < 0)
        for (o->micro_batch = o->batch; o->micro_batch > 1 && o->micro_batch * image > 1.25e6;)
            o->micro_batch = (o->micro_batch + 1) / 2;
    if (o->warmup < 0) {
        o->warmup = r->data.train.n / o->batch;
        if (o->warmup > o->steps / 2) o->warmup = o->steps / 2;
    }
    if (o->eval_every < 0) o->eval_every = (o->steps + 9) / 10;
    if (o->save_every < 0) o->save_every = o->eval_every;
}

static int run_open(Run *r, Options *o, Safetensors *state) {
    int fine = o->command == FINETUNE;
    *r = (Run){.o = o, .epoch = -1, .best_accuracy = -1};
    r->gen_weight = fine ? o->gen_weight : 1;
    r->clf_weight = fine;
    if (run_load(r, o, state)) return -1;
    run_defaults(r, o);
    const Config *c = &r->model.config;
    size_t T = dimension(c, DIM_T), n = r->model.n_params, B = (size_t)o->micro_batch;
    r->room = LOG_ROWS * 2 + o->steps / o->eval_every + 2;
    r->rows = zalloc((size_t)r->room, sizeof *r->rows);
    r->order = zalloc((size_t)r->data.train.n, sizeof *r->order);
    r->tokens = zalloc((B + 1) * T, sizeof *r->tokens);
    r->mask = zalloc(B * T, sizeof *r->mask);
    r->labels = zalloc(B, sizeof *r->labels);
    r->n_samples = draws_samples(o) ? train_samples(c) : 0;
    r->samples = zalloc((size_t)r->n_samples * T, sizeof *r->samples);
    r->grads = zalloc(3 * n, sizeof *r->grads);
    r->acts = activations_new(c, o->micro_batch, o->recompute ? KEEP_INPUTS : KEEP_ALL);
    if (fine) r->best = zalloc(n, sizeof *r->best);
    if (draws_samples(o)) r->sampler = sampler_new(c, r->n_samples);
    else if (!fine) note("a BERT model cannot draw pictures: there will be no samples.png");
    if (!r->rows || !r->order || !r->tokens || !r->mask || !r->labels || !r->samples || !r->grads ||
        !r->acts || (fine && !r->best) || (draws_samples(o) && !r->sampler))
        return -1;
    r->first = r->grads + n;
    r->second = r->first + n;
    r->drawing = (Drawing){&r->model, r->samples, r->n_samples};
    if (r->sampler) sampler_watch(r->sampler, show_row, &r->drawing);
    return state->file ? run_resume(r, state) : 0;
}

/* Test the run on what is held out, and keep the weights of a fine-tuning that beat all before. */
static int run_evaluate(Run *r, Row *row) {
    const Options *o = r->o;
    Scores s;
    if (evaluate(&s, &r->model, r->acts, r->held, o->micro_batch, r->best != NULL, 1, o->mask_prob))
        return -1;
    row->score[HELD_GEN] = s.gen;
    row->score[HELD_CLF] = s.clf;
    row->score[ACCURACY] = s.accuracy;
    if (!r->best) {
        note("step %d  train %.4f  test %.4f nats per pixel%s%s", r->step, row->score[TRAIN_GEN],
             s.gen, r->sampler ? "  " : "", r->sampler ? file_in(o->out, "samples.png") : "");
        return 0;
    }
    int better = s.accuracy > r->best_accuracy;
    note("step %d  L_CLF: train %.4f  validation %.4f  accuracy %.2f %%%s", r->step,
         row->score[TRAIN_CLF], s.clf, 100 * s.accuracy, better ? ", the best so far" : "");
    if (!better) return 0;
    memcpy(r->best, r->model.params, r->model.n_params * sizeof *r->best);
    r->best_accuracy = s.accuracy;
    r->best_step = r->step;
    return 0;
}

/* Note where the run stands; every now and then with an evaluation and pictures. */
static int run_report(Run *r, int evaluating) {
    const Options *o = r->o;
    Row *row = &r->rows[r->n_rows < r->room ? r->n_rows++ : r->room - 1];
    *row = (Row){.step = r->step,
                 .seconds = r->seconds + seconds_now() - r->began,
                 .lr = learning_rate(r->step - 1, o->steps, o->warmup, o->lr),
                 .score = {r->gen_weight > 0 ? r->sum.gen / r->sum_steps : NAN, NAN,
                           r->clf_weight > 0 ? r->sum.clf / r->sum_steps : NAN, NAN, NAN}};
    r->sum = (Losses){0, 0, 0};
    r->sum_steps = 0;
    if (!evaluating) return 0;
    if (run_evaluate(r, row)) return -1;
    if (r->sampler) {
        sample_images(&r->model, r->sampler, r->samples, r->n_samples, 0, (uint64_t)o->seed, 0,
                      o->temperature, o->top_k);
        if (sheet_write(file_in(o->out, "samples.png"), r->samples, r->n_samples, o->n_px,
                        r->model.palette, SHEET_COLUMNS))
            return -1;
    }
    return loss_chart(r, file_in(o->out, "loss.svg"));
}

/* What the run has to show for: the model, or of a fine-tuning its best weights. */
static Model run_result(const Run *r) {
    Model m = r->model;
    if (r->best_accuracy >= 0) m.params = r->best;
    return m;
}

/* The state goes last: where there is one, there is a model. */
static int run_save(const Run *r) {
    const char *dtype = r->o->f16 ? "F16" : sizeof(real) == 8 ? "F64" : "F32";
    Model m = run_result(r);
    if (model_save(&m, r->o->out, dtype) || log_write(r, file_in(r->o->out, "log.csv"))) return -1;
    return state_save(r, file_in(r->o->out, "train_state.safetensors"));
}

static int run_steps(Run *r) {
    const Options *o = r->o;
    int log_every = (o->steps + LOG_ROWS - 1) / LOG_ROWS, from = r->step;
    r->began = seconds_now();
    catch_interrupt();
    while (r->step < o->steps) {
        Losses mean = train_step(r);
        double loss = r->gen_weight * mean.gen + r->clf_weight * mean.clf;
        double spent = seconds_now() - r->began;
        r->sum.gen += mean.gen;
        r->sum.clf += mean.clf;
        r->sum_steps++;
        if (!isfinite(loss))
            return fail("the loss is %g at step %d: try a lower --lr", loss, r->step);
        progress("step %d of %d  loss %.4f  %.0f images/s  %s left", r->step, o->steps,
                 (r->gen_weight * r->sum.gen + r->clf_weight * r->sum.clf) / r->sum_steps,
                 (r->step - from) * (double)o->batch / spent,
                 clock_text(spent / (r->step - from) * (o->steps - r->step)));
        int last = r->step == o->steps, evaluating = last || r->step % o->eval_every == 0;
        int stop = interrupted; // read once: a signal may come between the two uses
        if ((evaluating || stop || r->step % log_every == 0) && run_report(r, evaluating))
            return -1;
        if ((last || stop || r->step % o->save_every == 0) && run_save(r)) return -1;
        if (stop) break;
    }
    if (r->step < o->steps)
        return fail("stopped at step %d of %d and saved; go on with: igpt %s --resume --out %s",
                    r->step, o->steps, o->name, o->out);
    return 0;
}

/* The figures of a run that has come to its end; a fine-tuned model is tested now, once. */
static int run_print(const Run *r) {
    const Options *o = r->o;
    const Row *end = &r->rows[r->n_rows - 1];
    Model m = run_result(r);
    Scores s = {end->score[HELD_GEN], NAN, NAN};
    if (r->best &&
        evaluate(&s, &m, r->acts, &r->data.test, o->micro_batch, 1, o->masks, o->mask_prob))
        return -1;
    printf("step %d\nseconds %.1f\n", end->step, end->seconds);
    if (r->gen_weight > 0) printf("train_nats_per_pixel %.5f\n", end->score[TRAIN_GEN]);
    if (r->best)
        printf("train_class_nats %.5f\nbest_step %d\nvalidation_accuracy %.4f\n",
               end->score[TRAIN_CLF], r->best_step, r->best_accuracy);
    print_scores(&s, &r->data.test, r->majority, &m.config);
    printf("peak_memory_mb %.0f\n", peak_memory() / 1e6);
    return 0;
}

static int command_train(Options *o) { // and finetune
    Safetensors state = {.file = NULL};
    Run run = {.o = o};
    int bad = 0;
    if (o->palette && (o->init || o->resume))
        return fail("--palette cannot go with --%s, whose model has one",
                    o->init ? "init" : "resume");
    if (o->init && o->resume) return fail("--init cannot go with --resume: start or go on");
    if (o->resume)
        bad = safetensors_open(&state, file_in(o->out, "train_state.safetensors")) ||
              options_resume(o, &state);
    if (!bad && o->command == TRAIN) {
        preset_apply(o);
        Config config = config_of(o);
        bad = config_check(&config);
    }
    bad = bad || run_open(&run, o, &state);
    if (!bad) {
        note("model: %d layers, d %d, %d heads, %d colours: %.2f million parameters, %.0f MB",
             o->n_layer, o->n_embd, o->n_head, o->n_vocab, (double)run.model.n_params / 1e6,
             train_bytes(o, &run.model.config, run.model.n_params) / 1e6);
        bad = run_steps(&run);
    }
    if (!bad && !run.n_rows) bad = fail("%s: the run is finished, but its log.csv is gone", o->out);
    bad = bad || run_print(&run);
    safetensors_close(&state);
    run_free(&run);
    return bad ? -1 : 0;
}

/* Draw n pictures into tokens (n, T), of each of which the first `rows` rows are there already. */
static int draw_pictures(const Options *o, const Model *m, uint16_t *tokens, int n, int rows) {
    Drawing drawing = {m, tokens, n};
    int most = sample_batch(&m->config);
    Sampler *sampler = sampler_new(&m->config, n < most ? n : most);
    if (!sampler) return -1;
    double began = seconds_now();
    sampler_watch(sampler, show_row, &drawing);
    sample_images(m, sampler, tokens, n, rows * m->config.n_px, (uint64_t)o->seed, 0,
                  o->temperature, o->top_k);
    double seconds = seconds_now() - began;
    note("%d pictures in %.1f s", n, seconds);
    printf("pictures_per_second %.2f\n", n / seconds);
    free(sampler);
    return 0;
}

static int command_sample(Options *o) {
    Model m;
    if (model_load(&m, o->model)) return -1;
    int n = o->n, columns = n < SHEET_COLUMNS ? n : SHEET_COLUMNS;
    uint16_t *tokens = zalloc((size_t)n * dimension(&m.config, DIM_T), sizeof *tokens);
    int bad = !tokens || folder_check(o->out) || draw_pictures(o, &m, tokens, n, 0);
    const char *path = file_in(o->out, "samples.png");
    bad = bad || sheet_write(path, tokens, n, m.config.n_px, m.palette, columns);
    if (!bad) printf("samples %s\n", path);
    free(tokens);
    model_free(&m);
    return bad ? -1 : 0;
}

static int command_eval(Options *o) {
    enum { B = 16 };
    Model m;
    Dataset data;
    Scores scores;
    if (model_load(&m, o->model)) return -1;
    if (dataset_read(&data, o->data, m.config.n_px)) {
        model_free(&m);
        return -1;
    }
    int classes = classes_agree(&m, &data);
    if (m.config.n_class && !classes)
        note("no accuracy: the classes of %s are not those of %s", o->data, o->model);
    Activations *acts = activations_new(&m.config, B, KEEP_NOTHING);
    int bad = !acts || images_quantise(&data.test, m.palette, m.config.n_vocab) ||
              evaluate(&scores, &m, acts, &data.test, B, classes, o->masks, o->mask_prob);
    if (!bad) {
        printf("images %d\n", data.test.n);
        print_scores(&scores, &data.test, majority_accuracy(&data), &m.config);
    }
    free(acts);
    dataset_free(&data);
    model_free(&m);
    return bad ? -1 : 0;
}

/* The parameters in matmuls: neither gains nor embeddings. */
static double multiplied_params(const Model *m) {
    size_t multiplied = m->n_params;
    for (int i = 0; i < m->n_tensors; i++) {
        const Tensor *t = &m->tensors[i];
        if (t->rank == 1 || t->kind == WTE || t->kind == WPE) multiplied -= t->rows * t->cols;
    }
    return (double)multiplied;
}

/* Floating-point operations of one image's forward pass: two for each parameter in a matmul and
   position, and for attention two products of T x T x d, of which a causal mask needs half. A
   training step takes three times that. */
static double forward_flops(const Model *m) {
    const Config *c = &m->config;
    double T = (double)dimension(c, DIM_T), attention = 4.0 * c->n_layer * T * T * c->n_embd;
    return 2 * multiplied_params(m) * T +
           (c->objective == OBJECTIVE_AR ? attention / 2 : attention);
}

static int command_info(Options *o) {
    Model m;
    Config c;
    if (o->model) {
        const char *path = file_in(o->model, "config.json");
        Json *json = json_read(path);
        int bad = !json || config_load(&c, json, path);
        free(json);
        if (bad) return -1;
        if (options_follow(o, &c, o->model)) return -1;
    }
    preset_apply(o);
    c = config_of(o);
    if (model_list(&m, c)) return -1;
    double forward = forward_flops(&m);
    printf("n_layer %d\nn_embd %d\nn_head %d\nn_px %d\nn_vocab %d\n", c.n_layer, c.n_embd, c.n_head,
           c.n_px, c.n_vocab);
    printf("parameters %zu\nparameters_millions %zu\n", m.n_params, m.n_params / 1000000);
    double training = train_bytes(o, &c, m.n_params), sampling = sample_bytes(&c, m.n_params);
    model_free(&m);
    c.n_px = 32, c.n_vocab = 512; // what the paper's table counts
    if (model_list(&m, c)) return -1;
    printf("parameters_millions_at_32px_512_colours %zu\n", m.n_params / 1000000);
    model_free(&m);
    printf("forward_gflop_per_image %.4g\ntraining_gflop_per_image %.4g\n", forward / 1e9,
           3 * forward / 1e9);
    printf("training_memory_mb %.0f\nsampling_memory_mb %.0f\n", training / 1e6, sampling / 1e6);
    return 0;
}

/* The root of the mean square error, in byte units, of the pictures that tokens make of a set. */
static double palette_error(const Images *set, const uint16_t *tokens, const real *palette) {
    size_t n = (size_t)set->n * (size_t)set->px * (size_t)set->px;
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        uint8_t colour[3];
        palette_colours(colour, tokens + i, 1, palette);
        for (size_t j = 0; j < 3; j++) sum += pow((double)set->rgb[3 * i + j] - colour[j], 2);
    }
    return sqrt(sum / (3 * (double)n));
}

static int command_palette(Options *o) {
    enum { SHOWN = 16 };
    Dataset data;
    preset_apply(o);
    if (dataset_read(&data, o->data, o->n_px)) return -1;
    const Images *test = &data.test;
    Config c = {.n_px = o->n_px};
    real *palette = folder_check(o->out) ? NULL : palette_make(o, &data.train, &c.n_vocab);
    size_t n = (size_t)test->n * (size_t)test->px * (size_t)test->px;
    uint16_t *tokens = zalloc(n, sizeof *tokens);
    Model m = {.config = c, .palette = palette};
    int bad = !palette || !tokens || palette_index(tokens, test->rgb, n, palette, c.n_vocab) ||
              palette_save(&m, file_in(o->out, "preprocessor_config.json")) ||
              palette_sheet_write(file_in(o->out, "palette.png"), palette, c.n_vocab, test->rgb,
                                  tokens, test->n < SHOWN ? test->n : SHOWN, test->px);
    if (!bad) {
        printf("colours %d\nrms_error %.3f\n", c.n_vocab, palette_error(test, tokens, palette));
        printf("palette %s\n", file_in(o->out, "preprocessor_config.json"));
        printf("picture %s\n", file_in(o->out, "palette.png"));
    }
    free(tokens);
    free(palette);
    dataset_free(&data);
    return bad ? -1 : 0;
}

static int list_length(char *const *list) {
    int n = 0;
    while (list[n] && strncmp(list[n], "--", 2)) n++;
    return n;
}

/* The pictures to complete, as tokens (n, T) for the caller to free: those of --image; or test
   pictures, evenly spread from the one that the seed counts to. */
static uint16_t *originals_read(const Options *o, const Model *m, int *n) {
    enum { TEST_PICTURES = 8 };
    int px = m->config.n_px, bad = 0;
    size_t T = (size_t)px * (size_t)px;
    Dataset data = {.n_class = 0};
    if (!o->image && dataset_read(&data, o->data, px)) return NULL;
    int n_test = data.test.n, shown = n_test < TEST_PICTURES ? n_test : TEST_PICTURES;
    *n = o->image ? list_length(o->image) : shown;
    uint8_t *rgb = zalloc((size_t)*n * T, 3);
    uint16_t *tokens = zalloc((size_t)*n * T, sizeof *tokens);
    for (int i = 0; i < *n && rgb && tokens && !bad; i++) {
        uint8_t *to = rgb + 3 * (size_t)i * T;
        if (o->image) bad = image_read(o->image[i], to, px);
        else {
            int64_t chosen = ((int64_t)i * n_test / *n + o->seed) % n_test;
            memcpy(to, images_at(&data.test, chosen), 3 * T);
        }
    }
    if (!rgb || !tokens || bad ||
        palette_index(tokens, rgb, (size_t)*n * T, m->palette, m->config.n_vocab)) {
        free(tokens);
        tokens = NULL;
    }
    free(rgb);
    dataset_free(&data);
    return tokens;
}

/* A sheet like the paper's figure 1: a line for each picture has what is given, the rest in grey,
   then `each` completions, then the original. Grey is a colour more than the palette has. */
static int completions_write(const char *path, const Model *m, const uint16_t *originals,
                             const uint16_t *drawn, int n, int each, int rows) {
    size_t T = dimension(&m->config, DIM_T), K = (size_t)m->config.n_vocab;
    size_t line = ((size_t)each + 2) * T, drawn_line = (size_t)each * T;
    size_t known = (size_t)(rows * m->config.n_px);
    uint16_t *sheet = zalloc((size_t)n * line, sizeof *sheet);
    real *palette = zalloc(3 * (K + 1), sizeof *palette); // colour K: 0, in the middle of [-1, 1]
    int bad = !sheet || !palette;
    for (size_t i = 0; i < (size_t)n && !bad; i++) {
        uint16_t *to = sheet + i * line;
        for (size_t t = 0; t < T; t++) to[t] = t < known ? originals[i * T + t] : (uint16_t)K;
        memcpy(to + T, drawn + i * drawn_line, drawn_line * sizeof *to);
        memcpy(to + T + drawn_line, originals + i * T, T * sizeof *to);
    }
    if (!bad) memcpy(palette, m->palette, 3 * K * sizeof *palette);
    bad = bad || sheet_write(path, sheet, n * (each + 2), m->config.n_px, palette, each + 2);
    free(palette);
    free(sheet);
    return bad;
}

static int command_complete(Options *o) {
    Model m;
    if (model_load(&m, o->model)) return -1;
    int px = m.config.n_px, rows = o->rows < 0 ? px / 2 : o->rows, each = o->completions, n = 0;
    size_t T = dimension(&m.config, DIM_T);
    int bad = rows > px ? fail("--rows %d: the model's pictures have %d", rows, px) : 0;
    uint16_t *originals = bad ? NULL : originals_read(o, &m, &n);
    uint16_t *drawn = originals ? zalloc((size_t)n * (size_t)each * T, sizeof *drawn) : NULL;
    for (size_t i = 0; drawn && i < (size_t)n * (size_t)each; i++)
        memcpy(drawn + i * T, originals + i / (size_t)each * T, T * sizeof *drawn);
    bad = !drawn || folder_check(o->out) || draw_pictures(o, &m, drawn, n * each, rows);
    const char *path = file_in(o->out, "completions.png");
    bad = bad || completions_write(path, &m, originals, drawn, n, each, rows);
    if (!bad) printf("completions %s\n", path);
    free(drawn);
    free(originals);
    model_free(&m);
    return bad ? -1 : 0;
}

/* The linear probe. */

typedef struct {
    char name[32];                // "pixels", a layer, or "2-4", joined layers
    double l2;                    // geometric mean over draws
    double mean[3], deviation[3]; // accuracy in percent over draws, of PART_TRAIN .. PART_TEST
} ProbeRow;

typedef struct {
    const Options *o;
    Model model;
    Dataset data;
    Activations *acts;
    int n, draws;
    int *labels;    // (n): training pictures, then test pictures
    uint8_t *part;  // (draws, n)
    uint8_t *mask;  // (PROBE_BATCH, T), NULL for AR
    real *features; // (n, count, width) of layers first .. first + count - 1
    int first, count;
    size_t width;
    ProbeRow *rows; // layers 0 .. L, pixels, then joined layers where --concat asks for them
    int n_rows;
} ProbeRun;

enum { PROBE_BATCH = 16, PROBE_DRAWS = 5 };

static void probe_free(ProbeRun *p) {
    model_free(&p->model);
    dataset_free(&p->data);
    free(p->acts);
    free(p->labels);
    free(p->part);
    free(p->mask);
    free(p->features);
    free(p->rows);
}

/* Drop the pictures without a label. */
static void keep_labelled(Images *set) {
    size_t size = 3 * (size_t)set->px * (size_t)set->px;
    int kept = 0;
    for (int i = 0; i < set->n; i++) {
        if (set->labels[i] < 0) continue;
        memmove(set->rgb + (size_t)kept * size, set->rgb + (size_t)i * size, size);
        set->labels[kept++] = set->labels[i];
    }
    set->n = kept;
}

static int probe_open(ProbeRun *p) {
    const Options *o = p->o;
    if (model_load(&p->model, o->model)) return -1;
    const Config *c = &p->model.config;
    if (o->concat > c->n_layer + 1)
        return fail("--concat %d: there are only %d layers", o->concat, c->n_layer + 1);
    if (dataset_read(&p->data, o->data, c->n_px)) return -1;
    Images *train = &p->data.train, *test = &p->data.test;
    if (p->data.n_class < 2)
        return fail("%s: a probe needs two classes or more, there are %d", o->data,
                    p->data.n_class);
    keep_labelled(train);
    keep_labelled(test);
    p->n = train->n + test->n;
    p->draws = o->labels_per_class ? PROBE_DRAWS : 1;
    p->width = feature_width(c, o->pool);
    p->labels = zalloc((size_t)p->n, sizeof *p->labels);
    p->part = zalloc((size_t)p->draws, (size_t)p->n);
    p->rows = zalloc((size_t)c->n_layer + 3, sizeof *p->rows);
    p->acts = activations_new(c, PROBE_BATCH, KEEP_NOTHING);
    if (c->objective == OBJECTIVE_BERT) p->mask = zalloc(PROBE_BATCH, dimension(c, DIM_T));
    if (!p->labels || !p->part || !p->rows || !p->acts) return -1;
    if (c->objective == OBJECTIVE_BERT && !p->mask) return -1;
    memcpy(p->labels, train->labels, (size_t)train->n * sizeof *p->labels);
    memcpy(p->labels + train->n, test->labels, (size_t)test->n * sizeof *p->labels);
    for (int draw = 0; draw < p->draws; draw++) {
        uint8_t *part = p->part + (size_t)draw * (size_t)p->n;
        if (labels_split(train, p->data.n_class, o->labels_per_class, (uint64_t)o->seed, draw,
                         part))
            return fail("%s: %s", o->data, error_text());
        memset(part + train->n, PART_TEST, (size_t)test->n);
    }
    return 0;
}

/* Fill a row: one probe for each draw, on the `width` columns of x (n, stride). */
static int probe_measure(const ProbeRun *p, ProbeRow *row, const real *x, size_t stride,
                         int width) {
    Probe probes[PROBE_DRAWS];
    double logs = 0;
    for (int draw = 0; draw < p->draws; draw++) {
        progress("probe: features %s, draw %d of %d", row->name, draw + 1, p->draws);
        if (probe_fit(&probes[draw], x, stride, width, p->labels,
                      p->part + (size_t)draw * (size_t)p->n, p->n, p->data.n_class))
            return -1;
        logs += log10(probes[draw].l2);
    }
    row->l2 = pow(10, logs / p->draws);
    for (int k = PART_TRAIN; k <= PART_TEST; k++) {
        double sum = 0, squares = 0;
        for (int draw = 0; draw < p->draws; draw++) sum += 100 * probes[draw].accuracy[k];
        row->mean[k] = sum / p->draws;
        for (int draw = 0; draw < p->draws; draw++)
            squares += pow(100 * probes[draw].accuracy[k] - row->mean[k], 2);
        row->deviation[k] = p->draws > 1 ? sqrt(squares / (p->draws - 1)) : 0;
    }
    return 0;
}

/* The baseline: the pictures' own bytes. */
static int probe_pixels(ProbeRun *p) {
    const Images *sets[] = {&p->data.train, &p->data.test};
    size_t width = 3 * (size_t)sets[0]->px * (size_t)sets[0]->px;
    real *x = zalloc((size_t)p->n, width * sizeof *x), *out = x;
    ProbeRow *row = &p->rows[p->model.config.n_layer + 1];
    snprintf(row->name, sizeof row->name, "pixels");
    for (int s = 0; s < 2 && x; s++)
        for (size_t i = 0; i < (size_t)sets[s]->n * width; i++) *out++ = sets[s]->rgb[i];
    int bad = !x || probe_measure(p, row, x, width, (int)width);
    free(x);
    return bad ? -1 : 0;
}

/* Have the features of layers first .. first + count - 1 of all pictures in memory. */
static int probe_hold(ProbeRun *p, int first, int count) {
    const Images *sets[] = {&p->data.train, &p->data.test};
    int T = p->model.config.n_px * p->model.config.n_px, masks = p->mask ? p->o->masks : 1;
    if (first >= p->first && first + count <= p->first + p->count) return 0;
    free(p->features);
    p->features = zalloc((size_t)p->n * (size_t)count, p->width * sizeof *p->features);
    if (!p->features) return -1;
    p->first = first;
    p->count = count;
    for (int s = 0, done = 0, B; s < 2; s++)
        for (int i = 0; i < sets[s]->n; i += B, done += B) {
            B = sets[s]->n - i < PROBE_BATCH ? sets[s]->n - i : PROBE_BATCH;
            for (int k = 0; k < masks; k++) {
                for (int b = 0; b < B && p->mask; b++)
                    bert_mask(p->mask + b * T, T, p->o->mask_prob, (uint64_t)p->o->seed,
                              (uint64_t)(done + b) * (uint64_t)masks + (uint64_t)k);
                model_features(&p->model, p->acts, sets[s]->tokens + (size_t)i * (size_t)T, p->mask,
                               B, p->o->pool, first, count, 1.0 / masks,
                               p->features + (size_t)done * (size_t)count * p->width);
            }
            progress("features: %d of %d pictures", done + B, p->n);
        }
    return 0;
}

/* The features that are held, and in a second file, FILE.labels.npy, each picture's label and
   part (of the first draw). */
static int probe_export(const ProbeRun *p, const char *path) {
    char second[PATH_SIZE];
    size_t n = strlen(path), n_name = n > 4 && !strcmp(path + n - 4, ".npy") ? n - 4 : n;
    if (snprintf(second, sizeof second, "%.*s.labels.npy", (int)n_name, path) >= PATH_SIZE)
        return fail("%s: the path is too long", path);
    real *labels = zalloc((size_t)p->n, 2 * sizeof *labels);
    if (!labels) return -1;
    for (int i = 0; i < p->n; i++) {
        labels[2 * i] = (real)p->labels[i];
        labels[2 * i + 1] = p->part[i];
    }
    const Stored features = {.dtype = sizeof(real) == 8 ? "F64" : "F32",
                             .n_dim = 3,
                             .shape = {p->n, p->count, (int64_t)p->width},
                             .data = p->features};
    const Stored table = {.dtype = "I64", .n_dim = 2, .shape = {p->n, 2}, .data = labels};
    int bad = npy_write(path, &features) || npy_write(second, &table);
    free(labels);
    return bad ? -1 : 0;
}

/* All layers: in one pass over the pictures, or in several where they are too large to hold (they
   all have to be for --features). Returns the layer with the best validation accuracy. */
static int probe_layers(ProbeRun *p) {
    const double most_bytes = 2e9;
    int layers = p->model.config.n_layer + 1, best = 0;
    double fit = most_bytes / ((double)p->n * (double)p->width * sizeof(real));
    int most = p->o->features || fit > layers ? layers : fit < 1 ? 1 : (int)fit;
    for (int l = 0; l < layers; l++) {
        ProbeRow *row = &p->rows[l];
        snprintf(row->name, sizeof row->name, "%d", l);
        if (l % most == 0 && probe_hold(p, l, layers - l < most ? layers - l : most)) return -1;
        if (l == 0 && p->o->features && probe_export(p, p->o->features)) return -1;
        if (probe_measure(p, row, p->features + (size_t)(l - p->first) * p->width,
                          (size_t)p->count * p->width, (int)p->width))
            return -1;
        if (row->mean[PART_VALIDATION] > p->rows[best].mean[PART_VALIDATION]) best = l;
    }
    return best;
}

/* --concat: neighbouring layers, as far as there are any on both sides of the best one. */
static int probe_joined(ProbeRun *p, int best) {
    int layers = p->model.config.n_layer + 1, joined = p->o->concat;
    int first = best - (joined - 1) / 2;
    ProbeRow *row = &p->rows[p->n_rows++];
    if (first + joined > layers) first = layers - joined;
    if (first < 0) first = 0;
    snprintf(row->name, sizeof row->name, "%d-%d", first, first + joined - 1);
    if (probe_hold(p, first, joined)) return -1;
    return probe_measure(p, row, p->features + (size_t)(first - p->first) * p->width,
                         (size_t)p->count * p->width, joined * (int)p->width);
}

static int probe_csv(const ProbeRun *p, const char *path) {
    FILE *f = file_create(path);
    if (!f) return -1;
    fprintf(f, "features,l2,train,train_sd,validation,validation_sd,test,test_sd\n");
    for (const ProbeRow *row = p->rows; row < p->rows + p->n_rows; row++) {
        fprintf(f, "%s,%.4g", row->name, row->l2);
        for (int k = PART_TRAIN; k <= PART_TEST; k++)
            fprintf(f, ",%.3f,%.3f", row->mean[k], row->deviation[k]);
        fputc('\n', f);
    }
    return file_finish(f, path);
}

static int probe_chart(const ProbeRun *p, int best, const char *path) {
    int L = p->model.config.n_layer;
    size_t n = (size_t)L + 1;
    double *x = zalloc(3 * n, sizeof *x), *validation = x + n, *test = validation + n;
    if (!x) return -1;
    for (size_t l = 0; l < n; l++) {
        x[l] = (double)l;
        validation[l] = p->rows[l].mean[PART_VALIDATION];
        test[l] = p->rows[l].mean[PART_TEST];
    }
    const double ends[] = {0, L}, chance = 100.0 / p->data.n_class;
    const double pixels = p->rows[n].mean[PART_TEST], majority = 100 * majority_accuracy(&p->data);
    char title[96], best_name[64];
    snprintf(title, sizeof title, "Linear probe");
    if (p->o->labels_per_class)
        snprintf(title, sizeof title, "Linear probe, %d labels a class, mean of %d draws",
                 p->o->labels_per_class, p->draws);
    snprintf(best_name, sizeof best_name, "best: layer %d, %.1f %%", best, test[best]);
    const Series series[] = {
        {best_name, "#f5b7a8", 1, x + best, test + best, 8},
        {"test", "#c0392b", L + 1, x, test, 3},
        {"validation", "#7aa6d6", L + 1, x, validation, 3},
        {"raw pixels, test", "#2e8b57", 2, ends, (const double[]){pixels, pixels}, 0},
        {"majority class", "#8a6d9e", 2, ends, (const double[]){majority, majority}, 0},
        {"chance", "#999999", 2, ends, (const double[]){chance, chance}, 0},
    };
    int bad =
        chart_write(path, title, "layer", "accuracy (%)", series, sizeof series / sizeof *series);
    free(x);
    return bad;
}

static void probe_print(const ProbeRun *p, int best) {
    static const char *const parts[] = {"train", "validation", "test"};
    printf("accuracy in percent\n%-8s %8s", "features", "l2");
    for (int k = PART_TRAIN; k <= PART_TEST; k++) printf(" %*s", p->draws > 1 ? 17 : 10, parts[k]);
    putchar('\n');
    for (const ProbeRow *row = p->rows; row < p->rows + p->n_rows; row++) {
        printf("%-8s %8.3g", row->name, row->l2);
        for (int k = PART_TRAIN; k <= PART_TEST; k++) {
            printf(" %10.2f", row->mean[k]);
            if (p->draws > 1) printf(" +- %-3.2f", row->deviation[k]);
        }
        putchar('\n');
    }
    printf("best_layer %d\nvalidation_accuracy %.4f\ntest_accuracy %.4f\n", best,
           p->rows[best].mean[PART_VALIDATION] / 100, p->rows[best].mean[PART_TEST] / 100);
    if (p->o->concat > 1)
        printf("joined_test_accuracy %.4f\n", p->rows[p->n_rows - 1].mean[PART_TEST] / 100);
    printf("pixels_test_accuracy %.4f\nmajority_accuracy %.4f\nchance_accuracy %.4f\n",
           p->rows[p->model.config.n_layer + 1].mean[PART_TEST] / 100, majority_accuracy(&p->data),
           1.0 / p->data.n_class);
}

static int command_probe(Options *o) {
    ProbeRun run = {.o = o};
    int best = -1, bad = probe_open(&run) || folder_check(o->out) || probe_pixels(&run);
    const Config *c = &run.model.config;
    if (!bad) {
        run.n_rows = c->n_layer + 2;
        bad = images_quantise(&run.data.train, run.model.palette, c->n_vocab) ||
              images_quantise(&run.data.test, run.model.palette, c->n_vocab) ||
              (best = probe_layers(&run)) < 0 || (o->concat > 1 && probe_joined(&run, best));
    }
    if (!bad) {
        bad = probe_csv(&run, file_in(o->out, "probe.csv")) ||
              probe_chart(&run, best, file_in(o->out, "probe.svg"));
    }
    if (!bad) {
        note("written: probe.csv and probe.svg in %s", o->out);
        probe_print(&run, best);
    }
    probe_free(&run);
    return bad ? -1 : 0;
}

/* bench: what this machine reaches, against its own peak. Every figure is the median of several
   runs; a share is the part of the peak that was measured in the same process. */

enum { BENCH_RUNS = 7, BENCH_ROWS = 40 };

typedef struct {
    int n;
    struct {
        char name[48];
        double value, peak; // in unit; peak 0: it is one itself
        const char *unit;
    } row[BENCH_ROWS];
} Bench;

static double bench_add(Bench *b, const char *name, double value, const char *unit, double peak) {
    snprintf(b->row[b->n].name, sizeof b->row->name, "%s", name);
    b->row[b->n].value = value;
    b->row[b->n].peak = peak;
    b->row[b->n++].unit = unit;
    printf("%-32s %8.1f %s", name, value, unit);
    if (peak > 0) printf("  %.2f", value / peak);
    putchar('\n');
    fflush(stdout);
    return value;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

enum { PEAK_SUMS = 12, PEAK_STEPS = 2000000 };

/* Nothing but multiply-adds on registers, in enough independent chains to keep the units busy. */
static void peak_run(void *context) {
    double *out = context;
#    pragma omp parallel
    {
        vec sums[PEAK_SUMS], factor = (vec){0} + (real)0.999, term = (vec){0} + (real)1e-3,
                             all = {0};
        for (int i = 0; i < PEAK_SUMS; i++) sums[i] = term * (real)i;
        for (int step = 0; step < PEAK_STEPS; step++)
            for (int i = 0; i < PEAK_SUMS; i++) sums[i] = sums[i] * factor + term;
        for (int i = 0; i < PEAK_SUMS; i++) all += sums[i];
        out[omp_get_thread_num()] = (double)all[0];
    }
}

typedef struct {
    size_t n;
    real *x;
    double sums[1024]; // of each thread
} Stream;

static void stream_run(void *context) {
    Stream *s = context;
#    pragma omp parallel
    {
        real sum = 0;
#    pragma omp for schedule(static)
        for (size_t block = 0; block < s->n / 4096; block++) {
            const real *x = s->x + block * 4096;
            real part = 0;
#    pragma omp simd reduction(+ : part)
            for (int i = 0; i < 4096; i++) part += x[i];
            sum += part;
        }
        s->sums[omp_get_thread_num()] = (double)sum;
    }
}

/* What a share is of: arithmetic or memory at its best, with the work of one run. */
typedef struct {
    void (*run)(void *);
    void *context;
    double work; // 1e9 operations or bytes
} Best;

static double timed(void (*run)(void *), void *context) {
    double from = seconds_now();
    run(context);
    return seconds_now() - from;
}

/* The median time of several runs, after one that warms up; fewer runs where one takes long.
   *reached: the median rate of what is best, measured in turn with them, since a machine that others
   use, too, is not equally fast from one second to the next. */
static double bench_time(void (*run)(void *), void *context, const Best *best, double *reached) {
    double seconds[BENCH_RUNS], rates[BENCH_RUNS], began = seconds_now();
    int n = 0;
    for (run(context); n < BENCH_RUNS && (n < 3 || seconds_now() - began < 3); n++) {
        rates[n] = best->work / timed(best->run, best->context);
        seconds[n] = timed(run, context);
    }
    qsort(seconds, (size_t)n, sizeof *seconds, ascending);
    qsort(rates, (size_t)n, sizeof *rates, ascending);
    *reached = rates[n / 2];
    return seconds[n / 2];
}

typedef struct {
    int M, N, K, transpose_a, transpose_b;
    const real *a, *b;
    real *c;
} Product;

static void product_run(void *context) {
    const Product *p = context;
    matmul(p->M, p->N, p->K, p->a, (size_t)(p->transpose_a ? 1 : p->K),
           (size_t)(p->transpose_a ? p->M : 1), p->b, (size_t)(p->transpose_b ? 1 : p->N),
           (size_t)(p->transpose_b ? p->K : 1), p->c, (size_t)p->N, 0);
}

/* The products of one layer: x w, dout w' and x' dout for each of its four matrices. */
static int bench_products(Bench *b, const char *model, const Config *c, int B, const Best *peak) {
    int d = c->n_embd, rows = B * c->n_px * c->n_px, count = 0;
    const struct {
        const char *name;
        int in, out;
    } linear[] = {
        {"c_attn", d, 3 * d}, {"attn.c_proj", d, d}, {"c_fc", d, 4 * d}, {"mlp.c_proj", 4 * d, d}};
    double logs = 0, logs_peak = 0, reached;
    size_t most = (size_t)rows * 4 * (size_t)d + 16 * (size_t)d * (size_t)d;
    real *x = zalloc(3 * most, sizeof *x);
    if (!x) return -1;
    for (size_t i = 0; i < 2 * most; i++) x[i] = (real)(i % 17) / 17 - (real)0.5;
    for (int i = 0; i < 12; i++) {
        static const char *const kinds[] = {"forward", "dx", "dw"};
        int in = linear[i / 3].in, out = linear[i / 3].out, kind = i % 3;
        Product p = {.a = x, .b = x + most, .c = x + 2 * most};
        p.M = kind == 2 ? in : rows;
        p.N = kind == 1 ? in : out;
        p.K = kind == 0 ? in : kind == 1 ? out : rows;
        p.transpose_a = kind == 2;
        p.transpose_b = kind == 1;
        double gflops = 2e-9 * p.M * p.N * p.K / bench_time(product_run, &p, peak, &reached);
        char name[48];
        snprintf(name, sizeof name, "%s %s %s", model, linear[i / 3].name, kinds[kind]);
        bench_add(b, name, gflops, "GFLOP/s", reached);
        logs += log(gflops);
        logs_peak += log(reached);
        count++;
    }
    free(x);
    char name[48];
    snprintf(name, sizeof name, "%s matmul, geometric mean", model);
    bench_add(b, name, exp(logs / count), "GFLOP/s", exp(logs_peak / count));
    return 0;
}

typedef struct {
    Model model;
    Activations *acts;
    Sampler *sampler;
    real *grads, *first, *second;
    uint16_t *tokens;
    int B, passes, t;
} Step;

static void step_free(Step *s) {
    model_free(&s->model);
    free(s->acts);
    free(s->sampler);
    free(s->grads);
    free(s->tokens);
}

static void step_run(void *context) {
    Step *s = context;
    Batch batch = {.B = s->B, .tokens = s->tokens};
    for (int i = 0; i < s->passes; i++)
        objective(&s->model, s->acts, &batch, 1, 0, 1.0 / (s->B * s->passes), s->grads);
    adam_step(s->model.params, s->grads, s->first, s->second, s->model.n_params, 1, 1e-4);
}

/* A step of training: passes over B images, then Adam. Four passes at most, which is the default
   model's batch: of the large ones a whole step would take minutes. */
static int bench_step(Bench *b, const char *name, const Config *c, int batch, int B,
                      const Best *peak) {
    Step s = {.B = B, .passes = batch < B ? 1 : batch / B < 4 ? batch / B : 4};
    if (model_init(&s.model, *c)) return -1;
    size_t n = s.model.n_params, T = dimension(c, DIM_T);
    model_randomise(&s.model, 1);
    s.acts = activations_new(c, B, KEEP_ALL);
    s.grads = zalloc(3 * n, sizeof *s.grads);
    s.tokens = zalloc((size_t)B * T, sizeof *s.tokens);
    int ready = s.acts && s.grads && s.tokens;
    if (ready) {
        s.first = s.grads + n;
        s.second = s.first + n;
        for (size_t i = 0; i < (size_t)B * T; i++) s.tokens[i] = (uint16_t)(i % (size_t)c->n_vocab);
        double reached, seconds = bench_time(step_run, &s, peak, &reached);
        char text[48];
        snprintf(text, sizeof text, "%s, training step", name);
        bench_add(b, text, 3e-9 * forward_flops(&s.model) * B * s.passes / seconds, "GFLOP/s",
                  reached);
    }
    step_free(&s);
    return ready ? 0 : -1;
}

enum { BENCH_POSITIONS = 8 }; // of a picture, in its middle

static void positions_run(void *context) {
    Step *s = context;
    for (int t = s->t; t < s->t + BENCH_POSITIONS; t++)
        sampler_step(&s->model, s->sampler, t, s->tokens, s->B);
}

/* Sampling at the size of igpt-s. One image: limited by reading, once a position, all weights of
   the products and the keys and values of half a picture. */
static int bench_sampling(Bench *b, const Config *c, const Best *memory, const Best *peak) {
    Step s = {.t = c->n_px * c->n_px / 2};
    if (model_init(&s.model, *c)) return -1;
    model_randomise(&s.model, 1);
    s.tokens = zalloc(32, sizeof *s.tokens);
    int ready = s.tokens != NULL;
    double read = multiplied_params(&s.model) + 2.0 * c->n_layer * s.t * c->n_embd;
    for (int B = 1; B <= 32 && ready; B = B == 1 ? 16 : 2 * B) {
        char name[48];
        s.B = B;
        s.sampler = sampler_new(c, B);
        ready = s.sampler != NULL;
        if (!ready) break;
        double reached, seconds = bench_time(positions_run, &s, B == 1 ? memory : peak, &reached);
        seconds /= BENCH_POSITIONS;
        snprintf(name, sizeof name, "igpt-s sampling, %d at a time", B);
        if (B == 1) bench_add(b, name, read * sizeof(real) / 1e9 / seconds, "GB/s", reached);
        else
            bench_add(b, name, forward_flops(&s.model) / 1e9 / (c->n_px * c->n_px) * B / seconds,
                      "GFLOP/s", reached);
        free(s.sampler);
        s.sampler = NULL;
    }
    step_free(&s);
    return ready ? 0 : -1;
}

static int bench_palette(Bench *b) {
    enum { N = 10000000, K = 512, ITERATIONS = 20 };
    uint8_t *rgb = zalloc(N, 3);
    real *palette = zalloc(K, 3 * sizeof *palette);
    int found = -1;
    if (rgb && palette) {
        for (size_t i = 0; i < N; i++) // smooth clouds of colour with noise, as in photographs
            for (size_t j = 0; j < 3; j++)
                rgb[3 * i + j] = (uint8_t)(128 + 90 * sin((double)(i * (j + 2)) * 1e-5) +
                                           (double)(random_bits(1, j, i) % 25));
        double began = seconds_now();
        found = palette_build(palette, K, rgb, N, 1, ITERATIONS, NULL);
        bench_add(b, "k-means, 10 million pixels, 20 x", seconds_now() - began, "s", 0);
    }
    free(palette);
    free(rgb);
    if (found >= 0 && found != K) return fail("bench: %d colours instead of %d", found, K);
    return found < 0 ? -1 : 0;
}

static int bench_csv(const Bench *b, const char *path) {
    FILE *f = file_create(path);
    if (!f) return -1;
    fprintf(f, "name,value,unit,share\n");
    for (int i = 0; i < b->n; i++) {
        fprintf(f, "\"%s\",%.4g,%s,", b->row[i].name, b->row[i].value, b->row[i].unit);
        if (b->row[i].peak > 0) fprintf(f, "%.3f", b->row[i].value / b->row[i].peak);
        fputc('\n', f);
    }
    return file_finish(f, path);
}

static int command_bench(Options *o) {
    Bench b = {.n = 0};
    preset_apply(o);
    Config own = config_of(o),
           small = {.n_px = 32, .n_vocab = 512, .n_embd = 512, .n_head = 8, .n_layer = 4};
    if (config_check(&own) || pass_check(&own, o->micro_batch)) return -1;
    double sums[1024], reached;
    Stream stream = {.n = (size_t)1 << 26};
    stream.x = zalloc(stream.n, sizeof *stream.x);
    if (!stream.x) return -1;
    Best peak = {peak_run, sums, 2e-9 * PEAK_SUMS * VL * PEAK_STEPS * threads_get()};
    Best memory = {stream_run, &stream, 1e-9 * (double)stream.n * sizeof(real)};
    bench_add(&b, "FMA peak", peak.work / bench_time(peak_run, sums, &peak, &reached), "GFLOP/s",
              0);
    bench_add(&b, "memory read", memory.work / bench_time(stream_run, &stream, &memory, &reached),
              "GB/s", 0);
    const char *name = presets[o->preset].name;
    int bad = bench_products(&b, "igpt-s", &small, 2, &peak) ||
              bench_products(&b, name, &own, o->micro_batch, &peak) ||
              bench_step(&b, "igpt-s width", &small, 2, 2, &peak) ||
              bench_step(&b, name, &own, o->batch, o->micro_batch, &peak);
    small.n_layer = 24;
    bad = bad || bench_sampling(&b, &small, &memory, &peak);
    free(stream.x);
    bad = bad || bench_palette(&b);
    return bad || (o->csv && bench_csv(&b, o->csv)) ? -1 : 0;
}

static const Command commands[] = {
    {"train", "pre-train on images", TRAIN, command_train},
    {"finetune", "train network and class head together", FINETUNE, command_train},
    {"probe", "logistic regression on the features of every layer", PROBE, command_probe},
    {"sample", "draw new images", SAMPLE, command_sample},
    {"complete", "hide the lower part of pictures and finish them", COMPLETE, command_complete},
    {"eval", "loss and accuracy on the test images", EVAL, command_eval},
    {"palette", "build a palette, or read one, and show it", PALETTE, command_palette},
    {"info", "a model's parameters, FLOPs and memory, before anything is run", INFO, command_info},
    {"bench", "what this machine reaches, against its own peak", BENCH, command_bench},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

/* How many letters apart two words are (Levenshtein), for suggestions. */
static int distance(const char *a, const char *b) {
    int row[64], n = (int)strlen(b);
    if (n > 63) return 99;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n];
}

static void help_all(FILE *f) {
    fprintf(f, "igpt - Image GPT in one C file\n\nusage: igpt COMMAND [--option VALUE ...]\n\n");
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(f, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fprintf(f, "\nigpt COMMAND --help shows a command's options. A first run, five minutes:\n\n"
               "  igpt train             learns to draw emoji; look at out/samples.png\n"
               "  igpt sample --n 64     draws more\n"
               "  igpt complete          finishes pictures of which it is given a half\n");
}

static void help_command(const Command *command) {
    printf("igpt %s - %s\n\n", command->name, command->summary);
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *o = &option_table[i];
        if (!(o->commands & command->bit)) continue;
        char left[48];
        snprintf(left, sizeof left, "--%s %s", o->name, o->unit);
        printf(strlen(left) > 20 ? "  %s\n%23s" : "  %-20s%1s", left, "");
        fputs(o->help, stdout);
        if (*o->initial) printf(" (%s)", o->initial);
        putchar('\n');
    }
    for (size_t i = 0; i < sizeof presets / sizeof *presets && command->bit & (TRAIN | INFO); i++)
        printf("%s  %-8s %2d layers, d %4d, %2d heads, %d x %d pixels, %3d colours, batch %d, "
               "%d steps, lr %g\n",
               i ? "" : "\nPresets:\n", presets[i].name, presets[i].n_layer, presets[i].n_embd,
               presets[i].n_head, presets[i].n_px, presets[i].n_px, presets[i].n_vocab,
               presets[i].batch, presets[i].steps, presets[i].lr);
}

/* Read argv[2..] into o. 0; 1: --help; -1: wrong usage. */
static int options_parse(Options *o, const Command *command, int argc, char **argv) {
    o->name = command->name;
    o->command = command->bit;
    o->lr = -1;
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *option = &option_table[i];
        if (!(option->commands & command->bit)) continue;
        if (*option->initial) option_set(o, option, option->initial);
        else if (option->type == WHOLE) *(int *)(void *)((char *)o + option->where) = -1;
    }
    for (int i = 2; i < argc; i++) {
        const Option *option = NULL, *near = NULL;
        const char *name = argv[i][0] == '-' && argv[i][1] == '-' ? argv[i] + 2 : "";
        int least = 4;
        if (!strcmp(name, "help") || !strcmp(argv[i], "-h")) return 1;
        if (!*name) return fail("\"%s\" is no option; options start with --", argv[i]);
        for (int k = 0; k < N_OPTIONS; k++) {
            if (!(option_table[k].commands & command->bit)) continue;
            int apart = distance(name, option_table[k].name);
            if (apart == 0) option = &option_table[k];
            if (apart < least) near = &option_table[k], least = apart;
        }
        if (!option && near)
            return fail("%s has no option --%s; did you mean --%s?", command->name, name,
                        near->name);
        if (!option) return fail("%s has no option --%s", command->name, name);
        given[option - option_table] = 1;
        int values = option->type == LIST ? list_length(argv + i + 1) : i + 1 < argc;
        if (option->type == FLAG) *(int *)(void *)((char *)o + option->where) = 1;
        else if (!values) return fail("--%s needs a value: --%s %s", name, name, option->unit);
        else if (option->type == LIST) {
            *(char ***)(void *)((char *)o + option->where) = argv + i + 1;
            i += values;
        } else if (option_set(o, option, argv[++i])) return -1;
    }
    return 0;
}

int main(int argc, char **argv) {
    const Command *command = NULL, *near = NULL;
    Options o = {.quiet = 0};
    int least = 4;
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") ||
        !strcmp(argv[1], "help")) {
        help_all(argc < 2 ? stderr : stdout);
        return argc < 2 ? 2 : 0;
    }
    for (int i = 0; i < N_COMMANDS; i++) {
        int apart = distance(argv[1], commands[i].name);
        if (apart == 0) command = &commands[i];
        if (apart < least) near = &commands[i], least = apart;
    }
    if (!command) {
        fprintf(stderr, "igpt: there is no command %s", argv[1]);
        if (near) fprintf(stderr, "; did you mean %s?\n", near->name);
        else fprintf(stderr, "; igpt --help shows those there are\n");
        return 2;
    }
    int parsed = options_parse(&o, command, argc, argv);
    if (parsed > 0) {
        help_command(command);
        return 0;
    }
    if (parsed < 0) {
        fprintf(stderr, "igpt: %s\n", error_text());
        return 2;
    }
    console.quiet = o.quiet;
    console.terminal = isatty(2);
    console.show = o.show < 0 ? !o.quiet && takes_colour() : o.show;
    threads_set(o.threads);
    int bad = command->run(&o);
    if (!bad && (fflush(stdout) || ferror(stdout)))
        bad = fail("cannot write to stdout: %s", strerror(errno));
    if (!bad) return 0;
    if (console.pending) fputc('\n', stderr);
    fprintf(stderr, "igpt: %s\n", error_text());
    return 1;
}

#endif // IGPT_NO_MAIN
