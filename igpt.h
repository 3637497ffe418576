/* igpt.h - the public interface of igpt: Image GPT (Chen et al. 2020) in one readable C file.
   SPDX-License-Identifier: MIT

   What tests, ports and other programs call; the commands of main() are built on nothing else.
   Compile igpt.c with -DIGPT_NO_MAIN and link it. Conventions that hold throughout:

   - Arrays are row-major; a shape such as (B, T, d) names the slowest index first. B counts images,
     T = n_px * n_px positions in raster order, K = n_vocab colours, d = n_embd, H = n_head,
     L = n_layer, C = n_class.
   - What can fail returns 0 for success and -1 (or NULL) for failure; error_text() then holds one
     sentence that says what went wrong. Nothing here prints or exits.
   - Results do not depend on the number of threads, to the last bit.
   - Random numbers are a function of (seed, stream, counter); nothing keeps a hidden state. */
#ifndef IGPT_H
#define IGPT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* ---- 1 numbers ------------------------------------------------------------------------------ */

#ifdef IGPT_DOUBLE
typedef double real; // for checking mathematics: central differences are sharp
#else
typedef float real; // what the program runs in
#endif

/* The sentence that the last failed call left; "" before the first. One per thread. */
const char *error_text(void);

/* 64 random bits: output number `counter` of a SplitMix64 generator (Steele, Lea and Flood 2014)
   whose state is a hash of seed and stream. */
uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t counter);

/* A uniform number in [0, 1), with 53 random bits. */
double random_uniform(uint64_t seed, uint64_t stream, uint64_t counter);

/* A standard normal number (Box and Muller 1958); uses the counters 2 * counter and
   2 * counter + 1 of its stream. */
double random_normal(uint64_t seed, uint64_t stream, uint64_t counter);

/* Shuffle order[0..n) (Fisher and Yates) with the numbers of one stream. */
void random_shuffle(int *order, int n, uint64_t seed, uint64_t stream);

/* e^x. In float: within 2 ulp of libm, infinite above 88.7, 0 below -86.6 (where the result leaves
   the normal floats), NaN for NaN. Branch-free, so that loops over it vectorise. */
real real_exp(real x);

/* How many threads parallel regions use from now on; 0 means all that the machine has. */
void threads_set(int n);
int threads_get(void);

/* ---- 2 matmul ------------------------------------------------------------------------------- */

/* C = A B, or C += A B where accumulate is not 0: A is (M, K), B is (K, N), C is (M, N).
   Element (i, k) of A is a[i * a_row + k * a_col], element (k, j) of B is b[k * b_row + j * b_col],
   element (i, j) of C is c[i * c_row + j]; so a transposed operand only swaps its two strides.
   M, N and K are 1 or more; C must not overlap A or B. Every element is summed in the order of k,
   in blocks of fixed length: the bits depend neither on the number of threads nor on M and N. */
void matmul(int M, int N, int K, const real *a, size_t a_row, size_t a_col, const real *b,
            size_t b_row, size_t b_col, real *c, size_t c_row, int accumulate);

/* ---- 3 layers ------------------------------------------------------------------------------- */

/* Each forward writes its output; each backward adds to the gradients it is given, unless its
   comment says that it writes them. "rows" is B * T. */

/* out (rows, d) = x * inv * gain, inv (rows) = 1 / sqrt(mean(x^2) + 1e-5). */
void rms_forward(real *out, real *inv, const real *x, const real *gain, int rows, int d);

/* dx (rows, d) and dgain (d) from dout (rows, d). partial: space for rms_partials(rows) * d. */
void rms_backward(real *dx, real *dgain, real *partial, const real *dout, const real *x,
                  const real *gain, const real *inv, int rows, int d);
size_t rms_partials(int rows);

/* h (B, T, d) = content + wpe. tokens (B, T) < K; wte (K + 1, d), its last row is sos; wpe (T, d).
   mask NULL (AR): the content at t is wte[tokens at t - 1], at 0 sos. mask (B, T) (BERT): wte of
   the token itself, 0 where mask is 1. */
void embed_forward(real *h, const uint16_t *tokens, const uint8_t *mask, const real *wte,
                   const real *wpe, int B, int T, int d, int K);
void embed_backward(real *dwte, real *dwpe, const real *dh, const uint16_t *tokens,
                    const uint8_t *mask, int B, int T, int d, int K);

/* Multi-head attention. qkv (B, T, 3d) = [q | k | v], each (H, d / H) within; out (B, T, d).
   lse (B, H, T): log-sum-exp of each row of scores, which backward needs. causal: position t sees
   0..t, else all. scratch: space for attention_scratch(T, d / H) reals for each of `threads`
   threads, on a boundary of 64 bytes, whatever is in it. Backward writes dqkv (B, T, 3d). Dao et al. 2022 show why
   the rows' log-sum-exp is enough. */
void attention_forward(real *out, real *lse, const real *qkv, int B, int T, int d, int H,
                       int causal, real *scratch, int threads);
void attention_backward(real *dqkv, const real *dout, const real *qkv, const real *out,
                        const real *lse, int B, int T, int d, int H, int causal, real *scratch,
                        int threads);
size_t attention_scratch(int T, int hs);

/* g = u * sigmoid(1.702 u), the activation of the MLP, on rows * width numbers. Backward takes
   du = dg on entry, leaves du = dg * g'(u), and writes g again, which forward need not keep. */
void gelu_forward(real *g, const real *u, int rows, int width);
void gelu_backward(real *du, real *g, const real *u, int rows, int width);

/* Cross entropy: probs (rows, K) holds logits on entry and probabilities on return; nll (rows) =
   -log p(target). Backward turns probs into the gradient of sum(weight * nll) by the logits:
   weight * (p - [k = target]), in place; weight (rows). */
void softmax_loss_forward(real *probs, real *nll, const uint16_t *targets, int rows, int K);
void softmax_loss_backward(real *probs, const uint16_t *targets, const real *weight, int rows,
                           int K);

/* ---- 4 model -------------------------------------------------------------------------------- */

enum { OBJECTIVE_AR, OBJECTIVE_BERT };

typedef struct {
    int n_px;      // pictures are n_px x n_px, T = n_px * n_px positions
    int n_vocab;   // K colours; the embedding has one row more, sos
    int n_embd;    // d
    int n_head;    // H, divides d
    int n_layer;   // L
    int n_class;   // C; 0: no classification head
    int objective; // what it was pre-trained on; decides the attention mask and the shift
} Config;

/* 0 if the sizes make a model; otherwise -1 and a sentence that names the field. */
int config_check(const Config *config);

/* A parameter tensor, made from the one table in igpt.c that lists them all. */
typedef struct {
    char name[64]; // in a checkpoint, Hugging Face's
    int kind, layer;
    size_t rows, cols; // (in, out) for the matrices of a block
    int rank;          // 1: a gain, shape (cols); 2: a matrix
    size_t offset;     // of its first element in params
    double std;        // standard deviation of its initial values; < 0: all 1
    int has_bias;      // Hugging Face expects a bias (cols) beside it, here always zero
} Tensor;

typedef struct {
    Config config;
    int n_tensors;
    Tensor *tensors;
    size_t n_params;
    real *params;       // all tensors, one behind the other
    real *palette;      // (K, 3) in [-1, 1]
    char **class_names; // (C)
} Model;

/* Lay out a model: tensors, zeroed parameters and palette, classes named "0", "1", ... model_free()
   gives the memory back. */
int model_init(Model *model, Config config);
void model_free(Model *model);

/* The list of tensors alone, without parameters (for info). */
int model_list(Model *model, Config config);

/* Initial values (paper, appendix; GPT-2's scheme): normal with each tensor's std, gains 1. */
void model_randomise(Model *model, uint64_t seed);

/* What a pass keeps: nothing (evaluation), all that backward needs, or each block's input only,
   from which backward runs the block again (the same bits for less memory and more time). */
enum { KEEP_NOTHING, KEEP_ALL, KEEP_INPUTS };

typedef struct Activations Activations;

/* Memory for passes of at most B images, on at most threads_get() threads. One allocation;
   activations_bytes() tells its size without making it. Give back with free(). */
Activations *activations_new(const Config *config, int B, int keep);
size_t activations_bytes(const Config *config, int B, int keep);

/* The network's output for B images: final normalised states n^L (B, T, d), in the activations.
   tokens (B, T); mask (B, T) as in embed_forward, NULL for AR. */
const real *model_forward(const Model *model, Activations *acts, const uint16_t *tokens,
                          const uint8_t *mask, int B);

/* logits (B, T, K) of the last forward, in the activations: p(x_t | ...) = softmax(logits[t]). */
real *model_logits(const Model *model, Activations *acts, int B);

/* ---- 5 objectives --------------------------------------------------------------------------- */

typedef struct {
    int B;
    const uint16_t *tokens; // (B, T)
    const uint8_t *mask;    // (B, T), 1 = masked: L_BERT. NULL: L_AR
    const int *labels;      // (B), for L_CLF; -1: none; may be NULL where clf_weight is 0
} Batch;

/* L_BERT's mask of a picture of T positions: each is masked (1) with this probability (> 0) on its
   own; all are drawn again until one is. A function of (seed, index), index < 2^56. */
void bert_mask(uint8_t *mask, int T, double probability, uint64_t seed, uint64_t index);

typedef struct {
    double gen,
        clf;     // sums over images: L_GEN in nats per position (per masked one for BERT), L_CLF
    int correct; // images whose class was right
} Losses;

/* gen_weight * L_GEN + clf_weight * L_CLF of a batch (paper, section 2.1 and 2.2). Where grads is
   not NULL, adds to it (laid out as params) scale times the gradient of the sum over images; acts
   must then keep what backward needs. scale = 1 / images makes it the mean's. */
Losses objective(const Model *model, Activations *acts, const Batch *batch, double gen_weight,
                 double clf_weight, double scale, real *grads);

/* ---- 6 optimiser ---------------------------------------------------------------------------- */

/* One step of Adam (Kingma and Ba 2015; beta1 0.9, beta2 0.95, eps 1e-8, no weight decay) on n
   parameters; step counts from 1; first and second are the moments, zero at the start. Clears
   grads for the next step. */
void adam_step(real *params, real *grads, real *first, real *second, size_t n, int step, double lr);

/* The learning rate of a step in 0..steps-1: linear warm-up, then half a cosine down to zero. */
double learning_rate(int step, int steps, int warmup, double peak);

/* ---- 7 palette ------------------------------------------------------------------------------ */

/* Palettes are (K, 3): red, green, blue in [-1, 1] (byte / 127.5 - 1), as OpenAI and Hugging Face
   keep their clusters. */

/* Choose at most K colours for n pixels rgb (n, 3) by k-means: k-means++ start (Arthur and
   Vassilvitskii 2007), then Lloyd's iterations until no pixel changes its cluster, `iterations` at
   the most. Returns how many colours: fewer than K where the pixels have fewer. -1: out of memory,
   or no pixels. If inertia is not NULL: the sum over pixels of the squared distance to their
   centre, in byte units. */
enum { PALETTE_ITERATIONS = 300 };
int palette_build(real *palette, int K, const uint8_t *rgb, size_t n, uint64_t seed, int iterations,
                  double *inertia);

/* The nearest colour of each of n pixels, by squared distance; ties go to the lower index.
   Returns 0, or -1 without memory. */
int palette_index(uint16_t *tokens, const uint8_t *rgb, size_t n, const real *palette, int K);

/* The byte colours (n, 3) of tokens. */
void palette_colours(uint8_t *rgb, const uint16_t *tokens, size_t n, const real *palette);

/* ---- 8 images ------------------------------------------------------------------------------- */

typedef struct {
    int n;            // pictures
    int px;           // side: every picture is px * px
    uint8_t *rgb;     // (n, px, px, 3); NULL once the pictures are tokens
    uint16_t *tokens; // (n, px * px) palette indices, or NULL
    int *labels;      // (n), -1: this picture has none; NULL where the data has no classes
} Images;

typedef struct {
    Images train, test;
    int n_class;        // 0 where the data has no classes
    char **class_names; // (n_class)
} Dataset;

/* Read the data set in the folder `dir` and bring every picture to n_px x n_px (1 to 256) as
   image_resize does. What lies in the folder tells which it is:

     CIFAR-10    data_batch_1.bin (up to _5), test_batch.bin; class names in batches.meta.txt
     CIFAR-100   train.bin, test.bin, of which the fine labels; fine_label_names.txt
     STL-10      train_X.bin, train_y.bin, test_X.bin, test_y.bin; class_names.txt; the pictures of
                 unlabeled_X.bin, where it is there, follow in train with label -1
     IDX         train-images-idx3-ubyte, train-labels-idx1-ubyte and both t10k-*; class_names.txt
     pictures    *.ppm and *.pgm as image_read reads them: train/CLASS/ and test/CLASS/; or CLASS/;
                 or no sub-folders, which is data without classes

   Class names are one to a line; where their file is missing they are "0", "1", ... In a folder
   of pictures the sub-folders' names are the classes, in strcmp order; names that start with a dot
   are passed over; without train/ and test/ 15 % of each class (at least one of two or more) become
   the test set, the same ones each time. Returns 0; or -1, with everything given back and *data
   zeroed, for a file that is missing, too short or too long, a label past the classes, no data
   set in the folder or two. */
int dataset_read(Dataset *data, const char *dir, int n_px);

/* Give back what dataset_read took and zero *data; a zeroed one is left as it is. */
void dataset_free(Dataset *data);

/* Read one binary PPM (P6) or PGM (P5; r = g = b), up to 32768 pixels a side and maxval 65535, and
   bring it to rgb (px, px, 3) as image_resize does. Of a file with several pictures it is the
   first. Returns 0 or -1. */
int image_read(const char *path, uint8_t *rgb, int px);

/* Bring the centre square of rgb (height, width, 3) to out (px, px, 3). Down: each pixel is the
   mean of the area it covers, source pixels that it covers in part counting in part. Up: bilinear
   between pixel centres, the outer half pixel repeating the edge. Exact, rounded to nearest.
   Returns 0; or -1 where a side is not 1 to 32768 or px not 1 to 256. */
int image_resize(const uint8_t *rgb, int width, int height, uint8_t *out, int px);

/* Augmentation, on pictures of palette indices (px, px); in and out must not overlap.
   image_flip mirrors left and right. image_crop_padded takes the px x px window whose top left is
   at (dy, dx), each 0 to 2 * pad, of the picture with `pad` pixels added on each side, reflected
   about the edge pixels without repeating them; 0 <= pad < px. */
void image_flip(const uint16_t *in, uint16_t *out, int px);
void image_crop_padded(const uint16_t *in, uint16_t *out, int px, int pad, int dy, int dx);

/* Turn a set's bytes into palette indices, in the same memory. Returns 0, or -1 without memory. */
int images_quantise(Images *set, const real *palette, int K);

/* Divide the labels of a training set: part (n) becomes PART_TRAIN, PART_VALIDATION or PART_NONE.
   Of each class 10 % (at least one of two or more) are for validation, always the same ones.
   per_class 0: all others train. Else per_class of each class train, draw number `draw` of `seed`
   (the low-data setting), and the others serve for nothing. Fails where a class has too few. */
enum { PART_TRAIN, PART_VALIDATION, PART_TEST, PART_NONE };
int labels_split(const Images *set, int n_class, int per_class, uint64_t seed, int draw,
                 uint8_t *part);

/* The same split for fine-tuning, on a set of tokens: validation pictures move to `held`, which is
   made for it, and the set keeps the training ones; pictures without a label go. Returns 0; or -1,
   `held` being empty, where labels_split fails or either part is left with nothing. */
int images_split(Images *set, Images *held, int n_class, int per_class, uint64_t seed);

/* ---- 9 checkpoints --------------------------------------------------------------------------- */

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonType;

typedef struct Json {
    JsonType type;
    const char *key;    // its name in an object, else NULL
    const char *text;   // JSON_STRING: UTF-8, zero-terminated
    double number;      // JSON_NUMBER; JSON_BOOL: 0 or 1
    struct Json *child; // JSON_ARRAY, JSON_OBJECT: the first element, NULL where it is empty
    struct Json *next;  // the element after this one
} Json;

/* Parse one JSON text: the grammar of RFC 8259 and nothing more, at most 64 levels deep, valid
   UTF-8, no duplicate keys, no \u0000, no number beyond a double. `name` opens the error sentence,
   which tells line and column (in bytes). The result is one allocation, given back with free();
   it holds copies, `text` is not needed any longer. */
Json *json_parse(const char *text, size_t length, const char *name);

/* The same for a file of at most 100 MB. */
Json *json_read(const char *path);

/* The member of an object with this key; NULL where there is none or `object` is NULL or no
   object. */
const Json *json_get(const Json *object, const char *key);

/* A tensor in a safetensors file. To write one, give name, dtype, n_dim, shape and data. */
typedef struct {
    const char *name;
    const char *dtype; // "F32", "F64", "F16", "BF16", "I64", ...
    int n_dim;
    int64_t shape[8];
    int64_t count;      // reading: the number of elements
    int64_t begin, end; // reading: its bytes, counted from the start of the file
    const real *data;   // writing: (count) values, or NULL for zeros
} Stored;

/* An open safetensors file. */
typedef struct {
    char path[1024]; // for error sentences
    FILE *file;
    Json *header;
    Stored *tensors; // in the order of their data
    int n_tensor;
} Safetensors;

/* Open a safetensors file and check its header: each tensor's shape agrees with its range of bytes,
   the ranges fill the file without overlap, hole or rest. Dtypes that are not known are let
   through, for as long as their tensors are not read. Leaves nothing to close where it fails. */
int safetensors_open(Safetensors *s, const char *path);

/* Close the file and free what it held: names, shapes and metadata too. */
void safetensors_close(Safetensors *s);

/* The tensor of this name; NULL where there is none (no error is noted). */
const Stored *safetensors_find(const Safetensors *s, const char *name);

/* The text that the file's metadata holds for this key, or NULL. */
const char *safetensors_metadata(const Safetensors *s, const char *key);

/* Read a tensor's `count` elements, F64, F32, F16, BF16 or I64, rounded to real where it is
   narrower. Fails for other dtypes and where the file cannot be read. */
int safetensors_read(Safetensors *s, const Stored *tensor, real *out);

/* Write n tensors, as F64, F32 or F16 (rounded to nearest even; a finite value that would become
   infinite is refused), whole or not at all. `metadata` is a list of strings, key, value, key,
   value, ..., NULL; it may be NULL. Hugging Face asks for "format", "pt". */
int safetensors_write(const char *path, const Stored *tensors, int n, const char *const *metadata);

/* Write a model directory as Hugging Face lays it out (made where it is missing): weights in
   model.safetensors with dtype "F32", "F16" or "F64", config.json, preprocessor_config.json. */
int model_save(const Model *model, const char *dir, const char *dtype);

/* Read a model directory, one of these or one of Hugging Face's. There is nothing to free where
   it fails. lm_head is zero where Hugging Face saved none: with ImageGPTForImageClassification
   and ImageGPTModel. */
int model_load(Model *model, const char *dir);

/* Read a palette: clusters of a preprocessor_config.json; or, the name ending in .npy, a NumPy
   array (K, 3) of little-endian f4 or f8 in C order, as OpenAI's kmeans_centers.npy. Values lie in
   [-1, 1]. Returns its *K colours (K, 3), given back with free(), or NULL. */
real *palette_read(const char *path, int *K);

/* ---- 10 sampling ---------------------------------------------------------------------------- */

typedef struct Sampler Sampler;

/* Memory to draw B images at once with a key-value cache: 2 L T d reals an image. One allocation,
   given back with free(); sampler_bytes() tells its size without making it. */
Sampler *sampler_new(const Config *config, int B);
size_t sampler_bytes(const Config *config, int B);

/* Feed position t of B images and return logits (B, K) for it: softmax gives p(x_t | x_<t).
   previous (B) holds the tokens at t - 1 (not read at t = 0). Positions come in order from 0. */
const real *sampler_step(const Model *model, Sampler *sampler, int t, const uint16_t *previous,
                         int B);

/* Called with the images (B, T) that are being drawn together, when their first `rows` rows of
   pixels are there. */
typedef void RowDrawn(void *context, const uint16_t *tokens, int B, int rows);

/* Have sample_images call watch(context, ...) after each row; NULL: nothing, as at the start. */
void sampler_watch(Sampler *sampler, RowDrawn *watch, void *context);

/* The uniform number by which sample_images draws position t of an image (numbered from first): the
   first colour whose cumulative probability exceeds it. */
double sample_uniform(uint64_t seed, int image, int t);

/* Draw n images into tokens (n, T), of each of which the first `given` positions are there
   already. Logits are divided by temperature (> 0); top_k > 0 keeps only the most probable
   colours. Image i is a function of (model, seed, first + i): neither threads nor the sampler's B
   change it. */
void sample_images(const Model *model, Sampler *sampler, uint16_t *tokens, int n, int given,
                   uint64_t seed, int first, double temperature, int top_k);

/* ---- 11 probe ------------------------------------------------------------------------------- */

/* Features of a picture: the mean of n^l over positions (d), or all of them side by side (T d). */
enum { POOL_MEAN, POOL_NONE };
size_t feature_width(const Config *config, int pool);

/* Adds scale times the features of layers first .. first + count - 1 (of 0 .. L) to out
   (B, count, width): n^l = rms(h^l; ln_1 of block l), n^L the network's output (paper, 2.4). tokens
   and mask as in model_forward; blocks above the last layer asked for do not run. Class logits are
   linear in features: averaging a BERT model's features over masks averages its logits, hence the
   scale. */
void model_features(const Model *model, Activations *acts, const uint16_t *tokens,
                    const uint8_t *mask, int B, int pool, int first, int count, double scale,
                    real *out);

/* A smooth function of x (n): returns its value, writes its gradient (n). */
typedef double Smooth(void *context, const real *x, real *gradient);

/* Minimise f from x on by L-BFGS (Nocedal 1980; Liu and Nocedal 1989): ten steps of history, step
   lengths that meet the weak Wolfe conditions. Ends where no element of the gradient is beyond
   tolerance, where rounding lets nothing more be gained, or after `most` steps. Returns the steps,
   -1 without memory. */
int lbfgs(Smooth *f, void *context, real *x, size_t n, int most, double tolerance);

/* Multinomial logistic regression: minimise the mean over x (n, width) of -log p(label) plus
   l2 / 2 |W|^2, where softmax(W x + b) gives p. w holds W (C, width), then b (C), which is not
   penalised; it is the start, too. Returns lbfgs'es steps.
   scikit-learn's LogisticRegression(C=1 / (l2 * n), tol=tolerance) minimises the same (for two
   classes: C=2 / (l2 * n)). */
int logistic_fit(real *w, const real *x, const uint16_t *labels, int n, int width, int C, double l2,
                 double tolerance);

/* The share of n rows whose label has the largest logit; -1 without memory. */
double logistic_accuracy(const real *w, const real *x, const uint16_t *labels, int n, int width,
                         int C);

typedef struct {
    double l2;          // the strength with the best validation accuracy; of several the strongest
    double accuracy[3]; // 0 to 1, of PART_TRAIN, PART_VALIDATION, PART_TEST
} Probe;

/* A linear probe on n rows of features x, `row` apart, each `width` wide, with labels (n) and part
   (n). Features are standardised on the training part; L2 is one of 10, 1, ..., 1e-5; fits end
   at a gradient of 1e-4. Fails without memory or where a part is empty. */
int probe_fit(Probe *probe, const real *x, size_t row, int width, const int *labels,
              const uint8_t *part, int n, int n_class);

/* Write an array as NumPy's .npy (version 1.0), dtype "F64", "F32", "F16" or "I64"; its name is not
   used. */
int npy_write(const char *path, const Stored *array);

/* ---- 12 pictures ---------------------------------------------------------------------------- */

/* Write an 8-bit RGB picture (height, width, 3) as PNG. */
int png_write(const char *path, const uint8_t *rgb, int width, int height);

/* A sheet of n pictures of tokens (n, px * px), `columns` in a row, each pixel enlarged. */
int sheet_write(const char *path, const uint16_t *tokens, int n, int px, const real *palette,
                int columns);

/* Write rows `row` and row + 1 of n pictures of tokens (n, px * px), side by side, as one line for
   a terminal with 24-bit colour: a character shows one pixel above the other. */
void terminal_rows(FILE *f, const uint16_t *tokens, int n, int px, int row, const real *palette);

/* A sheet about a palette (K, 3): its colours from dark to light, then n pictures rgb (n, px, px,
   3), each above what tokens (n, px * px) make of it. */
int palette_sheet_write(const char *path, const real *palette, int K, const uint8_t *rgb,
                        const uint16_t *tokens, int n, int px);

typedef struct {
    const char *name, *colour; // in the legend; an SVG colour
    int n;
    const double *x, *y; // (n); NaN in y leaves the point out
    int dots;            // radius of a dot on each point; 0: none
} Series;

/* A line chart as SVG. */
int chart_write(const char *path, const char *title, const char *x_name, const char *y_name,
                const Series *series, int n);

#endif /* IGPT_H */
