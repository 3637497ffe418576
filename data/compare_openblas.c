/* compare_openblas.c - igpt's matmul beside OpenBLAS at the model's shapes, for the README.
   SPDX-License-Identifier: MIT

       apt-get install libopenblas-dev
       cc -O3 -march=native -mprefer-vector-width=512 -fopenmp -DIGPT_NO_MAIN -I. \
           data/compare_openblas.c igpt.c -o /tmp/compare -lopenblas -lm
       OPENBLAS_CORETYPE=SkylakeX /tmp/compare

   OPENBLAS_CORETYPE matters on processors newer than the library, for which it falls back to SSE.
   Each product runs in turn with either library; shown are the medians, and that of the ratios. */

#include "igpt.h"
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

void openblas_set_num_threads(int n);
char *openblas_get_corename(void);

enum { RUNS = 15 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One shape; returns igpt's speed as a part of OpenBLAS's. */
static double compare(const char *name, int M, int N, int K, int ta, int tb) {
    float *a = calloc((size_t)M * (size_t)K, 4), *b = calloc((size_t)K * (size_t)N, 4);
    float *c = calloc((size_t)M * (size_t)N, 4), *d = calloc((size_t)M * (size_t)N, 4);
    Team team = team_new();
    double own[RUNS], other[RUNS], ratio[RUNS], flop = 2e-9 * M * N * K;
    for (size_t i = 0; i < (size_t)M * (size_t)K; i++) a[i] = (float)(i % 17) / 17 - 0.5f;
    for (size_t i = 0; i < (size_t)K * (size_t)N; i++) b[i] = (float)(i % 13) / 13 - 0.5f;
    for (int run = -1; run < RUNS; run++) { // the first one warms up
        double t0 = now();
        matmul(team, matrix(c, M, N), ta ? transposed(matrix(a, K, M)) : matrix(a, M, K),
               tb ? transposed(matrix(b, N, K)) : matrix(b, K, N), 0);
        double t1 = now();
        cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans,
                    M, N, K, 1, a, ta ? M : K, b, tb ? K : N, 0, d, N);
        double t2 = now();
        if (run < 0) continue;
        own[run] = t1 - t0;
        other[run] = t2 - t1;
        ratio[run] = other[run] / own[run];
    }
    for (size_t i = 0; i < (size_t)M * (size_t)N; i++)
        if (!(fabsf(c[i] - d[i]) < 1e-2f)) printf("%s: results differ\n", name), exit(1);
    qsort(own, RUNS, sizeof *own, ascending);
    qsort(other, RUNS, sizeof *other, ascending);
    qsort(ratio, RUNS, sizeof *ratio, ascending);
    printf("  %-24s %5d x %5d x %5d  igpt %6.1f  OpenBLAS %6.1f GFLOP/s  ratio %.2f\n", name, M, N,
           K, flop / own[RUNS / 2], flop / other[RUNS / 2], ratio[RUNS / 2]);
    free(a), free(b), free(c), free(d), free(team.memory);
    return ratio[RUNS / 2];
}

int main(void) {
    static const struct {
        const char *name;
        int rows, d;
    } models[] = {{"igpt-s", 2048, 512}, {"d 128", 4096, 128}};
    static const char *const linear[] = {"c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"};
    printf("OpenBLAS runs as %s\n", openblas_get_corename());
    for (int threads = 1; threads <= 2; threads++) {
        double logs = 0;
        threads_set(threads);
        openblas_set_num_threads(threads);
        printf("%d thread%s\n", threads, threads > 1 ? "s" : "");
        for (int i = 0; i < 24; i++) {
            int rows = models[i / 12].rows, d = models[i / 12].d, which = i % 12 / 3;
            int in = which == 3 ? 4 * d : d, out = which == 0 ? 3 * d : which == 2 ? 4 * d : d;
            char name[64];
            snprintf(name, sizeof name, "%s %s %s", models[i / 12].name, linear[which],
                     i % 3 == 0   ? "x w"
                     : i % 3 == 1 ? "dout w'"
                                  : "x' dout");
            logs += log(i % 3 == 0   ? compare(name, rows, out, in, 0, 0)
                        : i % 3 == 1 ? compare(name, rows, in, out, 0, 1)
                                     : compare(name, in, out, rows, 1, 0));
        }
        printf("%d thread%s: geometric mean of the ratios %.3f\n", threads, threads > 1 ? "s" : "",
               exp(logs / 24));
    }
    return 0;
}
