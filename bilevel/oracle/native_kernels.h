#pragma once
#include <cstdint>
#include <type_traits>
#include <vector>

namespace bilevel::native {

inline constexpr int64_t kBlock = 32;  // samples that a pass handles at once: their features stay in the core's cache

/// Elements that rows of weights and of the features' ends are padded to, for the widest vectors.
template <class T>
inline constexpr int64_t kPad = 64 / static_cast<int64_t>(sizeof(T));

enum class Link { kSquared, kLogistic, kSoftmax, kPoisson };
enum class Phi { kIdentity, kExp, kSigmoid, kSoftplus };

/// The samples of a generalised linear model and their weights, for the passes below.
///
/// Weights V and what is summed up, G, are [m, pitch]: the features in order, then the bias, then zeros up to a multiple of kPad.
/// A sample's features are read where they are, but for their last d mod kPad: those, a 1 for the bias and zeros make one row of
/// `ends` [n, kPad] (of one row for all, where end_pitch = 0).
///
/// Sparse features are rows of numbers and their columns (CSR). V and G are then [columns, m], the bias the last column where
/// there is one: what a number of the features is multiplied with lies side by side.
template <class T>
struct Samples {
  const T* features = nullptr;
  int64_t feature_pitch = 0;
  int64_t body = 0;  // ⌊d / kPad⌋ · kPad
  const T* ends = nullptr;
  int64_t end_pitch = 0;
  int64_t pitch = 0;                    // body + kPad
  const int64_t* row_starts = nullptr;  // [all + 1]; null: dense
  const int64_t* columns = nullptr;     // [stored], those of `values`
  const T* values = nullptr;            // [stored]
  int64_t bias_column = -1;             // −1: no bias
  const int64_t* index = nullptr;       // the batch's samples; null: all, in order
  int64_t n = 0;                        // of the batch
  int64_t rows = kBlock;                // of a block, at most kBlock
  Link link = Link::kSquared;
  int64_t classes = 1;              // C
  const int64_t* labels = nullptr;  // softmax: [all]
  const T* targets = nullptr;       // else [C, target_pitch]
  int64_t target_pitch = 0;
  int64_t models = 1;          // K, each C rows of V and G
  const T* weights = nullptr;  // s [K, n] of the batch, null: 1
  double scale = 1;            // of every loss, 1/n

  int64_t blocks() const { return (n + rows - 1) / rows; }
};

/// What the passes leave behind of each block for those that follow: [blocks, K C, kBlock], by which the loss's derivatives are
/// told: squared z − t, logistic σ(−tz), softmax the probabilities, Poisson e^z.
///
/// Each pass adds to G over the blocks [first, last), and G and `cross` may be null where they are not wanted. `work` has
/// work_size elements.
template <class T>
struct Passes {
  /// With z = V a:  G += s ∂ℓ/∂z aᵀ scale;  losses = ℓ [K, n];  returns Σ s ℓ scale.
  double (*gradient)(const Samples<T>&, const T* V, int64_t first, int64_t last, T* G, T* state, T* losses, T* work);
  /// For k blocks of K C rows of V, with u = V a:  G += s ∂²ℓ/∂z² u aᵀ scale;  cross = ⟨∂ℓ/∂z, u⟩ scale [k, K, n].
  void (*curvature)(const Samples<T>&, const T* V, int64_t k, int64_t first, int64_t last, const T* state, T* G, T* cross,
                    T* work);
  /// Both at once, for 2 K C rows of V, those of y before those of a direction: G [2 K C, pitch] takes both sums, `losses` and
  /// `cross` are [K, n]. Returns Σ s ℓ scale.
  double (*joint)(const Samples<T>&, const T* V, int64_t first, int64_t last, T* G, T* losses, T* cross, T* work);
  /// For k blocks of s' [k, K, n]:  G += s' ∂ℓ/∂z aᵀ scale.
  void (*weighted)(const Samples<T>&, const T* weights, int64_t k, int64_t first, int64_t last, const T* state, T* G, T* work);
  /// φ(x_i) and φ'(x_i), n of them.
  void (*map)(Phi phi, const T* x, int64_t n, T* values, T* slopes);
};

inline int64_t work_size(int64_t m, int64_t classes) { return (m + 2 * classes + 8) * kBlock; }

/// The passes for the processor that this runs on.
Passes<float> float_passes();
Passes<double> double_passes();
template <class T>
Passes<T> passes() {
  if constexpr (std::is_same_v<T, float>) {
    return float_passes();
  } else {
    return double_passes();
  }
}
const char* instruction_set();

/// For tests. The instruction sets that this processor has of those that were compiled, and a call to be served by one of them
/// alone from here on; 0: by the best again.
std::vector<int64_t> instruction_sets();
void pretend(int64_t instruction_set);

}  // namespace bilevel::native
