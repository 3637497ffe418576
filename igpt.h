/* igpt.h - the public interface of igpt: Image GPT (Chen et al. 2020) in one readable C file.
   SPDX-License-Identifier: MIT

   What tests, ports and other programs call. Compile igpt.c with -DIGPT_NO_MAIN and link it; or,
   with -DIGPT_API=static as well, include igpt.c itself (data/example.c does both). Conventions:

   - Arrays are row-major; a shape such as (B, T, d) names the slowest index first. B counts images,
     T = n_px * n_px positions in raster order, K = n_vocab colours, d = n_embd, H = n_head,
     L = n_layer, C = n_class, hs = d / H.
   - What can fail returns 0, or a count, for success, and -1 (or NULL) for failure; error_text()
     then says why in one sentence, unless it was a mere look-up. Nothing here prints or exits.
   - Results do not depend on the number of threads, to the last bit. There is no hidden state:
     threads may call at the same time, each with memory of its own (Team, Activations, ...). */
#ifndef IGPT_H
#define IGPT_H

#include <stdint.h>
#include <stdio.h>

#define IGPT_VERSION "2.0"
#ifndef IGPT_API
#    define IGPT_API
#endif
#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1 numbers ------------------------------------------------------------------------------ */
#ifdef IGPT_DOUBLE
typedef double real; // for checking mathematics: central differences are sharp
#else
typedef float real; // what the program runs in
#endif
typedef long long Size; // every count, size, offset and stride: 64 bits on every machine

/* The sentence that the last failed call left, one per thread. */
IGPT_API const char *error_text(void);

/* 64 random bits: output number `counter` of a SplitMix64 generator (Steele, Lea and Flood 2014)
   whose state is a hash of seed and stream. */
IGPT_API uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t counter);

/* A uniform number in [0, 1), with 53 random bits; and a standard normal one (Box and Muller 1958),
   which uses the counters 2 * counter and 2 * counter + 1; and a shuffle of order[0..n). */
IGPT_API double random_uniform(uint64_t seed, uint64_t stream, uint64_t counter);
IGPT_API double random_normal(uint64_t seed, uint64_t stream, uint64_t counter);
IGPT_API void random_shuffle(Size *order, Size n, uint64_t seed, uint64_t stream);

/* e^x. In float: relative error below 2.4e-7, or 2.6e-7 where products and sums are not fused;
   infinite above 88.7, 0 below -86.6 (near where floats are normal no more), NaN for NaN.
   Branch-free, so that loops over it vectorise. */
IGPT_API real real_exp(real x);

/* How many threads are used from now on; 0 means all that the machine has. */
IGPT_API void threads_set(int n);
IGPT_API int threads_get(void);

/* ---- 2 matmul ------------------------------------------------------------------------------- */
/* A matrix somewhere in memory: element (i, j) is data[i * row_step + j * col_step]. */
typedef struct {
    real *data;
    Size rows, cols, row_step, col_step;
} Matrix;

/* The matrix (rows, cols) whose rows lie one behind the other; and a matrix's transpose, the same
   memory read the other way. Only the first operand of matmul is written to. */
IGPT_API Matrix matrix(const real *data, Size rows, Size cols);
IGPT_API Matrix transposed(Matrix m);

/* The threads that work together, and scratch memory for each, best on a cache line. team_new:
   threads_get() threads with what matmul needs; to be given back with free(team.memory). */
typedef struct {
    int threads;
    Size each;    // reals for each thread
    real *memory; // (threads, each), whatever is in it; NULL: out of memory
} Team;
IGPT_API Team team_new(void);

/* C = A B, or C += A B where accumulate is not 0: A is (M, K), B is (K, N), C is (M, N); all three
   sizes are 1 or more, C must not overlap A or B, and its columns lie side by side. Every element
   is summed in the order of k, in blocks of fixed length: the bits depend neither on the number of
   threads nor on M and N. matmul_plain is the definition, summed in one run. */
IGPT_API void matmul(Team team, Matrix c, Matrix a, Matrix b, int accumulate);
IGPT_API void matmul_plain(Matrix c, Matrix a, Matrix b, int accumulate);

/* ---- 3 layers ------------------------------------------------------------------------------- */
/* Each forward writes its output; each backward adds to the gradients it is given, unless its
   comment says that it writes them. "rows" is B * T. */

/* out (rows, d) = x * inv * gain, inv (rows) = 1 / sqrt(mean(x^2) + 1e-5). Backward: dx (rows, d)
   and dgain (d) from dout (rows, d); partial: space for rms_partials(rows) * d. */
IGPT_API void rms_forward(real *out, real *inv, const real *x, const real *gain, Size rows, Size d);
IGPT_API void rms_backward(real *dx, real *dgain, real *partial, const real *dout, const real *x,
                           const real *gain, const real *inv, Size rows, Size d);
IGPT_API Size rms_partials(Size rows);

enum { NO_LABEL = 65535 }; // of a picture without a class

/* Pictures that pass through the network together. */
typedef struct {
    Size B;
    const uint16_t *tokens; // (B, T) < K
    const uint8_t *mask;    // (B, T), 1 = masked, for a BERT model; NULL for an AR model
    const uint16_t *labels; // (B) < C or NO_LABEL; may be NULL where L_CLF is not asked for
} Batch;

/* h (B, n, d) = content + wpe, of n positions from `first` on; backward is of all. wte (K + 1, d),
   its last row is sos; wpe (T, d). Without mask (AR): content at t is wte[token at t - 1], at 0
   sos. With it (BERT): wte[token at t], 0 if masked. */
IGPT_API void embed_forward(real *h, const Batch *batch, const real *wte, const real *wpe, Size T,
                            Size d, Size K, Size first, Size n);
IGPT_API void embed_backward(real *dwte, real *dwpe, const real *dh, const Batch *batch, Size T,
                             Size d, Size K);

/* The sizes of multi-head attention, whose team has attention_scratch(T, d / H) reals for each. */
typedef struct {
    Size B, T, d, H;
    int causal; // position t sees 0..t, else all
    Team team;
} Attention;

IGPT_API Size attention_scratch(Size T, Size hs);

/* qkv (B, T, 3d) = [q | k | v], each (H, hs) within; out (B, T, d). lse (B, H, T): log-sum-exp of
   each row of scores, which backward needs (Dao et al. 2022 show why it is enough). Backward
   writes dqkv (B, T, 3d). The plain ones are the definition, row by row. */
IGPT_API void attention_forward(const Attention *a, real *out, real *lse, const real *qkv);
IGPT_API void attention_backward(const Attention *a, real *dqkv, const real *dout, const real *qkv,
                                 const real *out, const real *lse);
IGPT_API void attention_plain_forward(const Attention *a, real *out, real *lse, const real *qkv);
IGPT_API void attention_plain_backward(const Attention *a, real *dqkv, const real *dout,
                                       const real *qkv, const real *out, const real *lse);

/* g = u * sigmoid(1.702 u), the MLP's activation. Backward takes du = dg, leaves du = dg * g'(u),
   and writes g again, which forward need not keep. */
IGPT_API void gelu_forward(real *g, const real *u, Size rows, Size width);
IGPT_API void gelu_backward(real *du, real *g, const real *u, Size rows, Size width);

/* Cross entropy of a softmax: probs (rows, K) holds logits on entry and probabilities on return;
   nll (rows) = -log p(target). Backward turns probs into the gradient of sum(weight * nll) by the
   logits: weight * (p - [k = target]), in place; weight (rows). */
IGPT_API void cross_entropy_forward(real *probs, real *nll, const uint16_t *targets, Size rows,
                                    Size K);
IGPT_API void cross_entropy_backward(real *probs, const uint16_t *targets, const real *weight,
                                     Size rows, Size K);

/* ---- 4 model -------------------------------------------------------------------------------- */
enum { OBJECTIVE_AR, OBJECTIVE_BERT };
typedef struct {
    Size n_px;      // pictures are n_px x n_px, T = n_px * n_px positions
    Size n_vocab;   // K colours; the embedding has one row more, sos
    Size n_embd;    // d
    Size n_head;    // H, divides d
    Size n_layer;   // L
    Size n_class;   // C; 0: no classification head
    Size objective; // pre-training's; decides the attention mask (the shift follows Batch.mask)
} Config;

IGPT_API int config_check(const Config *config); // -1: the sizes make no model

/* A parameter tensor, made by the one list in igpt.c that names them all. */
typedef struct {
    char name[64];   // Hugging Face's
    char bias[64];   // of the bias (cols) that it expects beside, here always zero; "": none
    Size rows, cols; // (in, out) for the matrices of a block; a gain is (1, cols)
    Size offset;     // of its first element in params
    double std;      // standard deviation of its initial values; < 0: all 1
} Tensor;

typedef char ClassName[128]; // UTF-8; a longer name is cut
typedef struct {
    Config config;
    Size n_tensors;
    Tensor *tensors;
    Size n_params;
    real *params;           // all tensors, one behind the other
    real *palette;          // (K, 3) in [-1, 1]
    ClassName *class_names; // (C)
} Model;

/* Lay out a model: tensors, zeroed parameters and palette, classes named "0", "1", ...; or the list
   of tensors alone, without parameters. model_free() gives the memory of either back. model_flops:
   those of an image's forward pass; training takes three times as many. */
IGPT_API int model_init(Model *model, Config config);
IGPT_API int model_list(Model *model, Config config);
IGPT_API void model_free(Model *model);
IGPT_API double model_flops(const Model *model);

/* Initial values of OpenAI's code (paper, 3.3): normal with each tensor's std; gains 1, heads 0. */
IGPT_API void model_randomise(Model *model, uint64_t seed);

/* What a pass keeps: nothing (evaluation), all that backward needs, or each block's input only,
   from which backward runs the block again (the same bits for less memory and more time). */
enum { KEEP_NOTHING, KEEP_ALL, KEEP_INPUTS, KEEP_PAST }; // the last: keys and values, to sample

/* Memory for passes of at most B images, on at most threads_get() threads. One allocation;
   activations_bytes() tells its size without making it. Give back with free(). */
typedef struct Activations Activations;
IGPT_API Activations *activations_new(const Config *config, Size B, int keep);
IGPT_API Size activations_bytes(const Config *config, Size B, int keep);

/* The network's output for a batch, n^L (B, T, d), and from it logits (B, T, K): p(x_t | ...) =
   softmax(logits[t]). Both are in the activations, until the next pass. */
IGPT_API const real *model_forward(const Model *model, Activations *acts, const Batch *batch);
IGPT_API real *model_logits(const Model *model, Activations *acts, Size B);

/* ---- 5 objectives and optimiser ------------------------------------------------------------- */
/* L_BERT's mask of a picture of T positions: each is masked (1) with this probability (> 0) on its
   own; all are drawn again until one is. A function of (seed, index), index < 2^56. */
IGPT_API void bert_mask(uint8_t *mask, Size T, double probability, uint64_t seed, uint64_t index);

typedef struct {
    double gen;   // sum over images of L_GEN, in nats per position (per masked one for BERT)
    double clf;   // sum over labelled images of L_CLF, in nats
    Size correct; // labelled images whose class was right
} Losses;

/* L_GEN and L_CLF of a batch (paper, sections 2.1 and 2.3), each only where its weight is not 0;
   L_CLF's is 0 where n_class is. Where grads is not NULL, adds to it (laid out as params) the
   gradient of gen_weight * gen + clf_weight * clf; acts must then keep what backward needs. */
IGPT_API Losses objective(const Model *model, Activations *acts, const Batch *batch,
                          double gen_weight, double clf_weight, real *grads);

/* A step of Adam (Kingma and Ba 2015; beta1 0.9, beta2 0.95, eps 1e-8, no weight decay), counted
   from 1, on n parameters. Moments are zero at the start; grads are cleared for the next step. */
typedef struct {
    Size n;
    real *params, *grads, *first, *second;
} Adam;
IGPT_API void adam_step(const Adam *adam, Size step, double lr);

/* The rate of a step in 0..steps-1: linear warm-up, then half a cosine down to zero. */
IGPT_API double learning_rate(Size step, Size steps, Size warmup, double peak);

/* ---- 6 palette ------------------------------------------------------------------------------ */
/* Palettes are (K, 3): red, green, blue in [-1, 1] (byte / 127.5 - 1), as Hugging Face keeps them.
   Choose at most K <= 65535 colours for n pixels rgb (n, 3) by greedy k-means++ (Arthur and
   Vassilvitskii 2007), then at most `iterations` of Lloyd's, until no pixel changes its cluster.
   Returns how many: fewer where pixels have fewer. `watch`, unless NULL, is told how far it is. */
enum { PALETTE_ITERATIONS = 300 };
typedef void (*Watch)(const char *work, Size done, Size n);
IGPT_API Size palette_build(real *palette, Size K, const uint8_t *rgb, Size n, uint64_t seed,
                            Size iterations, Watch watch);

/* The nearest colour of each of n pixels, by squared distance; of equals the lower index; -1
   without memory. And the byte colours (n, 3) of tokens. */
IGPT_API int palette_index(uint16_t *tokens, const uint8_t *rgb, Size n, const real *palette,
                           Size K);
IGPT_API void palette_colours(uint8_t *rgb, const uint16_t *tokens, Size n, const real *palette);

/* ---- 7 sampling ----------------------------------------------------------------------------- */
/* sampler_step and sample_positions take activations made with KEEP_PAST, which a BERT model has
   not. Feed position t of B images, tokens (B, T) known before t, and return logits (B, K) for it:
   softmax gives p(x_t | x_<t). Positions come in order from 0, with the same B. */
IGPT_API real *sampler_step(const Model *model, Activations *acts, Size t, const uint16_t *tokens,
                            Size B);

/* How images are drawn: logits are divided by temperature (> 0); top_k > 0 keeps only the most
   probable colours. Image b of those drawn together is number first + b of the seed's. */
typedef struct {
    uint64_t seed;
    Size first;
    double temperature;
    Size top_k;
} Drawing;

/* What position t is drawn by: the first colour whose cumulative probability is above it. */
IGPT_API double sample_uniform(uint64_t seed, Size image, Size t);

/* Go on with B images, tokens (B, T), from position t on to `end` (all at once, or row after row to
   show them as they grow): positions before `given` are there already and only fed, the others are
   drawn. Neither threads nor B change an image. -1 where logits give no probabilities. */
IGPT_API int sample_positions(const Model *model, Activations *acts, uint16_t *tokens, Size B,
                              Size t, Size end, Size given, const Drawing *drawing);

/* ---- 8 probe -------------------------------------------------------------------------------- */
enum { POOL_MEAN, POOL_NONE }; // the mean over positions (d), or all of them side by side (T d)
IGPT_API Size feature_width(const Config *config, int pool);

/* Adds scale times the features of a batch to out (B, L + 1, width): n^l = rms(h^l; ln_1 of block
   l), n^L the network's output (paper, 2.4). Class logits are linear in features: averaging a BERT
   model's features over masks averages its logits, hence the scale. */
IGPT_API void model_features(const Model *model, Activations *acts, const Batch *batch, int pool,
                             double scale, real *out);

/* A smooth function of x (n) returns its value and writes its gradient (n). Minimise f from x on by
   L-BFGS (Liu and Nocedal 1989): ten steps of history, step lengths by the weak Wolfe conditions.
   Ends where no element of the gradient is beyond tolerance, where rounding lets nothing more be
   gained, or after `most` steps. Returns the steps, -1 without memory. */
typedef double Smooth(void *context, const real *x, real *gradient);
IGPT_API Size lbfgs(Smooth *f, void *context, real *x, Size n, Size most, double tolerance);

/* Multinomial logistic regression: minimise the mean over x (n, width), a row's numbers side by
   side, of -log p(label) plus l2 / 2 |W|^2, where softmax(W x + b) gives p, like scikit-learn's
   LogisticRegression of C = 1 / (l2 n), for two classes 2 / (l2 n). w holds W (C, width), then b
   (C), which is not penalised; it is the start, too. Returns lbfgs's steps. Accuracy: how often the
   largest logit is the label's; right (n), unless NULL, becomes 1 there and else 0. */
IGPT_API Size logistic_fit(real *w, Matrix x, const uint16_t *labels, Size C, double l2,
                           double tolerance);
IGPT_API double logistic_accuracy(const real *w, Matrix x, const uint16_t *labels, Size C,
                                  uint8_t *right);

typedef struct {    // some of a set's pictures, by their numbers
    Size n, *index; // (n), given back with free()
} Subset;

enum { TRAIN_PART, VALIDATION_PART, TEST_PART, N_PARTS };
typedef struct {
    double l2;                // what did best in validation; of equals the strongest
    double accuracy[N_PARTS]; // 0 to 1
} Probe;

/* A linear probe on features x, finite, a picture to a row, of C classes. They are standardised on
   the training part; L2 is one of 10, 1, ..., 1e-5; fits end at a gradient of 1e-4; right (test
   pictures) as above. Fails without memory or with an empty part. */
IGPT_API int probe_fit(Probe *probe, Matrix x, const uint16_t *labels, const Subset parts[N_PARTS],
                       Size C, uint8_t *right);

/* ---- 10 images ------------------------------------------------------------------------------ */
typedef struct {
    Size n;           // pictures
    Size px;          // side: every picture is px * px
    uint8_t *rgb;     // (n, px, px, 3); NULL once the pictures are tokens
    uint16_t *tokens; // (n, px * px) palette indices, or NULL
    uint16_t *labels; // (n), or NO_LABEL
} Images;

typedef struct {
    Images train, test;
    Size n_class;           // 0 where the data has no classes
    ClassName *class_names; // (n_class)
} Dataset;

/* Read the data set in the folder `dir` and bring every picture to n_px x n_px (1 to 256) as
   image_resize does. What lies in the folder tells which it is:

     CIFAR-10    data_batch_1.bin (up to _5), test_batch.bin; class names in batches.meta.txt
     CIFAR-100   train.bin, test.bin, of which the fine labels; fine_label_names.txt
     STL-10      train_X.bin, train_y.bin, test_X.bin, test_y.bin; class_names.txt; the pictures of
                 unlabeled_X.bin, where it is there, follow in train without a label
     IDX         train-images-idx3-ubyte, train-labels-idx1-ubyte and both t10k-*; class_names.txt
     pictures    *.ppm and *.pgm as image_read reads them: train/CLASS/ and test/CLASS/; or CLASS/;
                 or no sub-folders, which is data without classes

   Class names are one to a line; where their file is missing they are "0", "1", ... In a folder
   of pictures the sub-folders' names are the classes, in strcmp order; names that start with a dot
   and folders with igpt's own output are passed over; without train/ and test/ 15 % of each class
   (at least one of two or more) become the test set, the same ones each time. Bytes of a class name
   that are no UTF-8 are taken for Latin-1. Where it fails, *data is zeroed: nothing to free. */
IGPT_API int dataset_read(Dataset *data, const char *dir, Size n_px);
IGPT_API void dataset_free(Dataset *data); // and zero it; a zeroed one is left as it is

/* Read one binary PPM (P6) or PGM (P5; r = g = b), up to 32768 pixels a side and maxval 65535, the
   first of the file, and bring it to rgb (px, px, 3) as image_resize does. */
IGPT_API int image_read(const char *path, uint8_t *rgb, Size px);

/* Bring the centre square of rgb (height, width, 3; 1 to 32768 a side) to out (px, px, 3; px 1 to
   256): each pixel is the mean of the area it covers, exact, rounded to nearest. */
IGPT_API int image_resize(const uint8_t *rgb, Size width, Size height, uint8_t *out, Size px);

/* Augmentation, on pictures of palette indices (px, px) that must not overlap: mirror left and
   right where flip is not 0, then take the px x px window whose top left is at (dy, dx), each 0 to
   2 * pad, of the picture with `pad` < px pixels reflected about the edge pixels on each side. */
IGPT_API void image_augment(const uint16_t *in, uint16_t *out, Size px, int flip, Size pad, Size dy,
                            Size dx);

/* From rgb to tokens, in place. */
IGPT_API int images_quantise(Images *set, const real *palette, Size K);

/* Divide the labelled pictures of a training set: of each class 10 % (at least one of two or more)
   are for validation, always the same ones. per_class 0: all others train. Else per_class of each
   class train, draw number `draw` of `seed` (the low-data setting). Both lists rise. Fails, leaving
   nothing to free, where a class has too few labels. */
IGPT_API int labels_split(const Images *set, Size n_class, Size per_class, uint64_t seed, Size draw,
                          Subset *train, Subset *validation);

/* ---- 11 checkpoints ------------------------------------------------------------------------- */
/* JSON is kept as the text it is. json_check holds a text, closed by a zero byte, against the
   grammar of RFC 8259, at most 64 levels deep, valid UTF-8, no \u0000, no number beyond a double;
   `name` opens the error sentence, which tells the byte. json_read gives such a text from a file of
   at most `most` bytes, to be given back with free(). From then on a value is a pointer to its
   first character; NULL is none, in and out.

   json_get     the value of a key (below 1024 bytes); of equal ones the last counts, as in Python
   json_first   the first item of an array, or key of an object
   json_next    the item or key after this one
   json_value   what stands behind a key
   json_text    a string, in UTF-8, into out; -1 where it is none or needs more than `room` bytes
   json_number  a number, or 1 and 0 for true and false; else NaN
   A program that calls setlocale() must leave LC_NUMERIC at "C": files are written and read so. */
IGPT_API int json_check(const char *text, Size length, const char *name);
IGPT_API char *json_read(const char *path, Size most);
IGPT_API const char *json_get(const char *value, const char *key);
IGPT_API const char *json_first(const char *value);
IGPT_API const char *json_next(const char *item);
IGPT_API const char *json_value(const char *key);
IGPT_API int json_text(const char *value, char *out, Size room);
IGPT_API double json_number(const char *value);

/* Types of safetensors' elements. Written: the first three; read: the first five. */
enum { F64, F32, F16, BF16, I64, OTHER };
enum { MAX_DIMS = 8 };

/* A tensor in a safetensors file. */
typedef struct {
    const char *name;
    int dtype, n_dim;
    Size shape[MAX_DIMS];
    Size count;         // reading: the number of elements
    Size begin, end;    // reading: its bytes, counted from the start of the file
    const real *data;   // writing: (count) values,
    const double *wide; // or these; neither: zeros
} Stored;

/* An open safetensors file. */
typedef struct {
    char path[1024]; // for error sentences
    FILE *file;
    char *header, *names;        // checked JSON; decoded from it
    Stored *tensors;             // (n_tensors) by name
    Size n_tensors, start, size; // start of the data in the file, size of the file
} Safetensors;

/* Open a safetensors file and check that each tensor's shape agrees with its bytes, and that these
   fill the file without overlap, hole or rest. Leaves nothing to close where it fails. */
IGPT_API int safetensors_open(Safetensors *s, const char *path);
IGPT_API void safetensors_close(Safetensors *s);

/* Look up a tensor: 1 and *found (with this `name`), or 0. And metadata, as json_text gives it. */
IGPT_API int safetensors_find(const Safetensors *s, const char *name, Stored *found);
IGPT_API int safetensors_metadata(const Safetensors *s, const char *key, char *out, Size room);

/* Read a tensor's `count` elements, F64, F32, F16, BF16 or I64, into out, rounded to real where it
   is narrower, or, out being NULL, into wide; where both are NULL they must be zeros. */
IGPT_API int safetensors_read(const Safetensors *s, const Stored *tensor, real *out, double *wide);

/* Write n tensors, as F64, F32 or F16 (rounded to nearest even; a finite value that would become
   infinite is refused), whole or not at all. Names are UTF-8 and differ. `metadata` is a list of
   strings, key, value, ..., NULL; it may be NULL. Hugging Face asks for "format", "pt". */
IGPT_API int safetensors_write(const char *path, const Stored *tensors, Size n,
                               const char *const *metadata);

/* Write a model directory as Hugging Face lays it out, made where it is missing; weights as dtype.
   Read one, of these or of Hugging Face's (a missing lm_head is zero). Where reading fails *model
   is zeroed, with nothing to free. */
IGPT_API int model_save(const Model *model, const char *dir, int dtype);
IGPT_API int model_load(Model *model, const char *dir);

/* Read a palette: the clusters of a preprocessor_config.json, values in [-1, 1]. Returns its *K
   colours (K, 3), given back with free(), or NULL. And write such a file, for pictures of n_px. */
IGPT_API real *palette_read(const char *path, Size *K);
IGPT_API int palette_save(const char *path, const real *palette, Size K, Size n_px);

/* ---- 12 pictures ---------------------------------------------------------------------------- */
/* Write an 8-bit picture rgb (height, width, 3) as PNG: of at most 256 colours with a palette.
   And a sheet of n pictures rgb (n, px, px, 3), `columns` in a row, each pixel enlarged. */
IGPT_API int png_write(const char *path, const uint8_t *rgb, Size width, Size height);
IGPT_API int sheet_write(const char *path, const uint8_t *rgb, Size n, Size px, Size columns);

/* Write rows `row` and row + 1 of n pictures rgb (n, px, px, 3) as one line for a terminal with
   24-bit colour: a character shows one pixel above the other. */
IGPT_API void terminal_rows(FILE *f, const uint8_t *rgb, Size n, Size px, Size row);

typedef struct {               // a line of a chart, which is written as SVG
    const char *name, *colour; // at its end; an SVG colour
    Size n, step;              // points, and from one to the next in x and y
    const double *x, *y;       // NaN in y leaves the point out
    int dots;                  // radius of a dot on each point; 0: none
} Series;

/* Axes with ticks that fit all n lines, the lines, and their names where they end. */
IGPT_API int chart_write(const char *path, const char *title, const char *x_name,
                         const char *y_name, const Series *series, Size n);

#ifdef __cplusplus
}
#endif
#endif /* IGPT_H */

/* MIT License

   Copyright (c) 2026 the igpt authors

   Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
   associated documentation files (the "Software"), to deal in the Software without restriction,
   including without limitation the rights to use, copy, modify, merge, publish, distribute,
   sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
   furnished to do so, subject to the following conditions:

   The above copyright notice and this permission notice shall be included in all copies or
   substantial portions of the Software.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
   NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
   NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
   DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
   OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE. */
