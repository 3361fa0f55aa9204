// For a block of samples whose features A [B, d] stay in the cache:
//
//   U = V Aᵀ [m, B],   R = what the loss makes of U [m, B],   G += R A [m, d]
//
// so that one pass over the features serves both products. U's tile of MR × NR sums runs along d; G's tile of MR rows and NV
// vectors runs along the block. This file is compiled once for each instruction set and chosen from when it runs.
#include "bilevel/oracle/native_kernels.h"

#include <algorithm>
#include <type_traits>

// What these targets add to those that are left is of no use here.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bilevel/oracle/native_kernels.cpp"
#include <hwy/foreach_target.h>  // before the other headers of hwy

#include <hwy/cache_control.h>
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace bilevel::native {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

#define BILEVEL_UNROLL _Pragma("GCC unroll 32")

template <class T>
using Tag = hn::CappedTag<T, kPad<T>>;

// Sums that fit the registers, beside what is multiplied.
constexpr int kManyRegisters = HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON;
constexpr int kRows = kManyRegisters ? 5 : 3;     // MR
constexpr int kVectors = kManyRegisters ? 4 : 3;  // NV
constexpr int kSamplesAtOnce = 8;                 // NR of one or two rows, else half as many

// Independent sums that keep the multipliers busy while each waits for its last addition.
constexpr int kChains = 8;

template <class T>
struct Block {
  const T* features[kBlock];  // those past the last sample repeat it, and weigh nothing
  const T* ends[kBlock];
  int64_t sample[kBlock];  // in the data
  int64_t first = 0;       // in the batch
  int rows = 0;
  int padded = 0;  // a multiple of kSamplesAtOnce
};

template <class T>
Block<T> block_at(const Samples<T>& s, int64_t b) {
  Block<T> block;
  block.first = b * s.rows;
  block.rows = static_cast<int>(std::min(s.rows, s.n - block.first));
  block.padded = (block.rows + kSamplesAtOnce - 1) / kSamplesAtOnce * kSamplesAtOnce;
  const auto take = [&](int r, int64_t i) {
    block.sample[r] = i;
    if (s.row_starts) return;
    block.features[r] = s.features + i * s.feature_pitch;
    block.ends[r] = s.ends + i * s.end_pitch;
  };
  if (s.index) {
    for (int r = 0; r < block.rows; ++r) take(r, s.index[block.first + r]);
  } else {
    for (int r = 0; r < block.rows; ++r) take(r, block.first + r);
  }
  for (int r = block.rows; r < block.padded; ++r) take(r, block.sample[block.rows - 1]);
  return block;
}

// The next block's features, while this one's are computed with: nothing else hides the memory's latency.
template <class T>
void prefetch(const Samples<T>& s, int64_t b, int part) {
  const int64_t position = b * s.rows + part;
  if (part >= s.rows || position >= s.n) return;
  const T* row = s.features + (s.index ? s.index[position] : position) * s.feature_pitch;
  for (int64_t j = 0; j < s.body; j += kPad<T>) hwy::Prefetch(row + j);
}

#if HWY_TARGET != HWY_SCALAR
// The sum of a vector's blocks of 16 bytes.
template <class D>
HWY_INLINE auto block_sum(D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) * sizeof(hn::TFromD<D>) > 16) {
    const hn::Half<D> half;
    return block_sum(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  } else {
    return v;
  }
}
#endif

// out[i] = the sum of v[i]'s lanes, for NR of them. Four floats, or two doubles, make one block: that halves the additions each
// time instead of adding up each vector for itself.
template <int NR, class T>
HWY_INLINE void lane_sums(const hn::Vec<Tag<T>>* v, T* HWY_RESTRICT out) {
#if HWY_TARGET != HWY_SCALAR
  const Tag<T> d;
  if constexpr (std::is_same_v<T, double>) {
    BILEVEL_UNROLL for (int i = 0; i < NR; i += 2) {
      const auto pair = hn::Add(hn::InterleaveLower(d, v[i], v[i + 1]), hn::InterleaveUpper(d, v[i], v[i + 1]));
      hn::StoreU(block_sum(d, pair), hn::FixedTag<T, 2>(), out + i);
    }
  } else {
    const hn::Repartition<double, Tag<T>> d64;  // to move two floats as one
    BILEVEL_UNROLL for (int i = 0; i < NR; i += 4) {
      const auto ab = hn::Add(hn::InterleaveLower(d, v[i], v[i + 1]), hn::InterleaveUpper(d, v[i], v[i + 1]));
      const auto ce = hn::Add(hn::InterleaveLower(d, v[i + 2], v[i + 3]), hn::InterleaveUpper(d, v[i + 2], v[i + 3]));
      const auto low = hn::BitCast(d, hn::InterleaveLower(d64, hn::BitCast(d64, ab), hn::BitCast(d64, ce)));
      const auto high = hn::BitCast(d, hn::InterleaveUpper(d64, hn::BitCast(d64, ab), hn::BitCast(d64, ce)));
      hn::StoreU(block_sum(d, hn::Add(low, high)), hn::FixedTag<T, 4>(), out + i);
    }
  }
#else
  BILEVEL_UNROLL for (int i = 0; i < NR; ++i) out[i] = hn::GetLane(v[i]);
#endif
}

// U[c][r] = ⟨V_c, a_r⟩ for MR rows of V and NR samples.
template <int MR, int NR, class T>
void dot_tile(const T* HWY_RESTRICT V, int64_t pitch, int64_t body, const T* const* features, const T* const* ends,
              T* HWY_RESTRICT U) {
  const Tag<T> d;
  const int64_t L = static_cast<int64_t>(hn::Lanes(d));
  using Vec = hn::Vec<Tag<T>>;
  Vec sum[MR][NR];
  BILEVEL_UNROLL for (int c = 0; c < MR; ++c) { BILEVEL_UNROLL for (int r = 0; r < NR; ++r) sum[c][r] = hn::Zero(d); }
  const T* a[NR];
  BILEVEL_UNROLL for (int r = 0; r < NR; ++r) a[r] = features[r];
  for (int64_t j = 0; j < body; j += L) {
    Vec x[NR];
    BILEVEL_UNROLL for (int r = 0; r < NR; ++r) x[r] = hn::LoadU(d, a[r] + j);
    BILEVEL_UNROLL for (int c = 0; c < MR; ++c) {
      const Vec v = hn::LoadU(d, V + c * pitch + j);
      BILEVEL_UNROLL for (int r = 0; r < NR; ++r) sum[c][r] = hn::MulAdd(v, x[r], sum[c][r]);
    }
  }
  for (int64_t j = 0; j < kPad<T>; j += L) {
    BILEVEL_UNROLL for (int c = 0; c < MR; ++c) {
      const Vec v = hn::LoadU(d, V + c * pitch + body + j);
      BILEVEL_UNROLL for (int r = 0; r < NR; ++r) sum[c][r] = hn::MulAdd(v, hn::LoadU(d, ends[r] + j), sum[c][r]);
    }
  }
  BILEVEL_UNROLL for (int c = 0; c < MR; ++c) lane_sums<NR, T>(sum[c], U + c * kBlock);
}

template <int MR, class T>
void dot_rows(const Samples<T>& s, const Block<T>& block, const T* V, T* U) {
  constexpr int NR = MR <= 2 ? kSamplesAtOnce : kSamplesAtOnce / 2;
  for (int r = 0; r < block.padded; r += NR) dot_tile<MR, NR>(V, s.pitch, s.body, block.features + r, block.ends + r, U + r);
}

// The same for sparse features, m fixed where it is small: the sums of one sample then stay in registers.
template <int M, class T>
void sparse_dot(const Samples<T>& s, const Block<T>& block, const T* HWY_RESTRICT V, int64_t any_m, T* HWY_RESTRICT U) {
  const int64_t m = M > 0 ? M : any_m;
  T fixed[M > 0 ? M : 1];
  for (int r = 0; r < block.rows; ++r) {
    const int64_t i = block.sample[r];
    if constexpr (M > 0) {
      for (int c = 0; c < M; ++c) fixed[c] = s.bias_column >= 0 ? V[s.bias_column * M + c] : T(0);
      for (int64_t k = s.row_starts[i]; k < s.row_starts[i + 1]; ++k) {
        const T* const row = V + s.columns[k] * M;
        for (int c = 0; c < M; ++c) fixed[c] += s.values[k] * row[c];
      }
      for (int c = 0; c < M; ++c) U[c * kBlock + r] = fixed[c];
    } else {
      // Many sums, 32 at a time.
      for (int64_t first = 0; first < m; first += 32) {
        const int64_t width = std::min<int64_t>(32, m - first);
        T sum[32] = {};
        if (s.bias_column >= 0) std::copy_n(V + s.bias_column * m + first, width, sum);
        for (int64_t k = s.row_starts[i]; k < s.row_starts[i + 1]; ++k) {
          const T* const row = V + s.columns[k] * m + first;
          const T value = s.values[k];
          for (int64_t c = 0; c < width; ++c) sum[c] += value * row[c];
        }
        for (int64_t c = 0; c < width; ++c) U[(first + c) * kBlock + r] = sum[c];
      }
    }
  }
  // Those past the last sample repeat it.
  for (int64_t c = 0; c < m; ++c)
    std::fill(U + c * kBlock + block.rows, U + c * kBlock + block.padded, U[c * kBlock + block.rows - 1]);
}

template <int M, class T>
void sparse_outer(const Samples<T>& s, const Block<T>& block, const T* HWY_RESTRICT R, int64_t any_m, T* HWY_RESTRICT G) {
  const int64_t m = M > 0 ? M : any_m;
  T factors[M > 0 ? M : 32];
  for (int r = 0; r < block.rows; ++r) {
    const int64_t i = block.sample[r];
    for (int64_t first = 0; first < m; first += 32) {
      const int64_t width = M > 0 ? M : std::min<int64_t>(32, m - first);
      for (int64_t c = 0; c < width; ++c) factors[c] = R[(first + c) * kBlock + r];
      for (int64_t k = s.row_starts[i]; k < s.row_starts[i + 1]; ++k) {
        T* const row = G + s.columns[k] * m + first;
        const T value = s.values[k];
        for (int64_t c = 0; c < width; ++c) row[c] += value * factors[c];
      }
      if (s.bias_column < 0) continue;
      T* const row = G + s.bias_column * m + first;
      for (int64_t c = 0; c < width; ++c) row[c] += factors[c];
    }
  }
}

// U [m, kBlock] = V Aᵀ.
template <class T>
void dot(const Samples<T>& s, const Block<T>& block, const T* V, int64_t m, T* U) {
  if (s.row_starts) {
    switch (m) {
      case 1: return sparse_dot<1>(s, block, V, m, U);
      case 2: return sparse_dot<2>(s, block, V, m, U);
      case 4: return sparse_dot<4>(s, block, V, m, U);
      case 10: return sparse_dot<10>(s, block, V, m, U);
      case 20: return sparse_dot<20>(s, block, V, m, U);
      default: return sparse_dot<0>(s, block, V, m, U);
    }
  }
  int64_t c = 0;
  for (; c + kRows <= m; c += kRows) dot_rows<kRows>(s, block, V + c * s.pitch, U + c * kBlock);
  V += c * s.pitch, U += c * kBlock;
  switch (m - c) {
    case 1: return dot_rows<1>(s, block, V, U);
    case 2: return dot_rows<2>(s, block, V, U);
    case 3: return dot_rows<std::min(3, kRows)>(s, block, V, U);
    case 4: return dot_rows<std::min(4, kRows)>(s, block, V, U);
    default: return;
  }
}

// G[c] += Σ_r R[c][r] a_r over the block, for MR rows of G and NV vectors of the features. Few sums are split by samples.
template <int MR, int NV, class T>
void outer_tile(const T* const* rows, int count, int64_t offset, const T* HWY_RESTRICT R, T* HWY_RESTRICT G, int64_t pitch) {
  const Tag<T> d;
  const int64_t L = static_cast<int64_t>(hn::Lanes(d));
  using Vec = hn::Vec<Tag<T>>;
  constexpr int S = MR * NV >= kChains ? 1 : MR * NV >= kChains / 2 ? 2 : 4;
  Vec sum[S][MR][NV];
  BILEVEL_UNROLL for (int c = 0; c < MR; ++c) {
    BILEVEL_UNROLL for (int v = 0; v < NV; ++v) {
      sum[0][c][v] = hn::LoadU(d, G + c * pitch + v * L);
      BILEVEL_UNROLL for (int i = 1; i < S; ++i) sum[i][c][v] = hn::Zero(d);
    }
  }
  const auto add = [&](int r, int i) HWY_ATTR {
    const T* row = rows[r] + offset;
    Vec x[NV];
    BILEVEL_UNROLL for (int v = 0; v < NV; ++v) x[v] = hn::LoadU(d, row + v * L);
    BILEVEL_UNROLL for (int c = 0; c < MR; ++c) {
      const Vec factor = hn::Set(d, R[c * kBlock + r]);
      BILEVEL_UNROLL for (int v = 0; v < NV; ++v) sum[i][c][v] = hn::MulAdd(factor, x[v], sum[i][c][v]);
    }
  };
  int r = 0;
  for (; r + S <= count; r += S) {
    BILEVEL_UNROLL for (int i = 0; i < S; ++i) add(r + i, i);
  }
  for (; r < count; ++r) add(r, 0);
  BILEVEL_UNROLL for (int c = 0; c < MR; ++c) {
    BILEVEL_UNROLL for (int v = 0; v < NV; ++v) {
      BILEVEL_UNROLL for (int i = 1; i < S; ++i) sum[0][c][v] = hn::Add(sum[0][c][v], sum[i][c][v]);
      hn::StoreU(sum[0][c][v], d, G + c * pitch + v * L);
    }
  }
}

template <int NV, class T>
void outer_columns(const T* const* rows, int count, int64_t offset, const T* R, int64_t m, T* G, int64_t pitch) {
  int64_t c = 0;
  for (; c + kRows <= m; c += kRows) outer_tile<kRows, NV>(rows, count, offset, R + c * kBlock, G + c * pitch, pitch);
  R += c * kBlock, G += c * pitch;
  switch (m - c) {
    case 1: return outer_tile<1, NV>(rows, count, offset, R, G, pitch);
    case 2: return outer_tile<2, NV>(rows, count, offset, R, G, pitch);
    case 3: return outer_tile<std::min(3, kRows), NV>(rows, count, offset, R, G, pitch);
    case 4: return outer_tile<std::min(4, kRows), NV>(rows, count, offset, R, G, pitch);
    default: return;
  }
}

// G [m, pitch] += R A, R [m, kBlock]; the features of block `next` are fetched meanwhile.
template <class T>
void outer(const Samples<T>& s, const Block<T>& block, const T* R, int64_t m, T* G, int64_t next) {
  if (s.row_starts) {
    switch (m) {
      case 1: return sparse_outer<1>(s, block, R, m, G);
      case 2: return sparse_outer<2>(s, block, R, m, G);
      case 4: return sparse_outer<4>(s, block, R, m, G);
      case 10: return sparse_outer<10>(s, block, R, m, G);
      case 20: return sparse_outer<20>(s, block, R, m, G);
      default: return sparse_outer<0>(s, block, R, m, G);
    }
  }
  const int64_t L = static_cast<int64_t>(hn::Lanes(Tag<T>()));
  int64_t j = 0;
  int part = 0;
  const int64_t panels = std::max<int64_t>(s.body / (kVectors * L), 1);
  const int parts = static_cast<int>((s.rows + panels - 1) / panels);  // rows to fetch with each panel
  for (; j + kVectors * L <= s.body; j += kVectors * L) {
    for (int p = 0; p < parts; ++p) prefetch(s, next, part++);
    outer_columns<kVectors>(block.features, block.rows, j, R, m, G + j, s.pitch);
  }
  switch ((s.body - j) / L) {
    case 1: outer_columns<1>(block.features, block.rows, j, R, m, G + j, s.pitch); break;
    case 2: outer_columns<2>(block.features, block.rows, j, R, m, G + j, s.pitch); break;
    case 3: outer_columns<3>(block.features, block.rows, j, R, m, G + j, s.pitch); break;
    default: break;
  }
  for (int64_t e = 0; e < kPad<T>; e += L) outer_columns<1>(block.ends, block.rows, e, R, m, G + s.body + e, s.pitch);
}

template <class T>
const T* weights_of(const Samples<T>& s, const T* weights, int64_t model) {
  return weights ? weights + model * s.n : nullptr;
}

// w_r = s_r · scale, 0 past the last sample.
template <class T>
void take_weights(const Samples<T>& s, const Block<T>& block, const T* weights, T* w) {
  const T scale = static_cast<T>(s.scale);
  for (int r = 0; r < block.rows; ++r) w[r] = weights ? weights[block.first + r] * scale : scale;
  for (int r = block.rows; r < kBlock; ++r) w[r] = 0;
}

template <class T>
void take_targets(const Samples<T>& s, const Block<T>& block, int64_t c, T* t) {
  for (int r = 0; r < block.rows; ++r) t[r] = s.targets[c * s.target_pitch + block.sample[r]];
  for (int r = block.rows; r < block.padded; ++r) t[r] = t[block.rows - 1];
}

// f(offset) for each vector of a block's samples.
template <class T, class F>
HWY_INLINE void along(int padded, F f) {
  const int L = static_cast<int>(hn::Lanes(Tag<T>()));
  for (int r = 0; r < padded; r += L) f(r);
}

// From logits U: the state, the unweighted losses l, and R = w ∂ℓ/∂z in U's place.
template <class T>
void first_order(const Samples<T>& s, const Block<T>& block, const T* w, T* U, T* S, T* l, T* t) {
  const Tag<T> d;
  using Vec = hn::Vec<Tag<T>>;
  const int64_t C = s.classes;
  const Vec zero = hn::Zero(d), one = hn::Set(d, T(1));
  switch (s.link) {
    case Link::kSoftmax: {
      for (int r = 0; r < block.rows; ++r) t[r] = U[s.labels[block.sample[r]] * kBlock + r];
      along<T>(block.padded, [&](int r) HWY_ATTR {
        Vec top = hn::LoadU(d, U + r);
        for (int64_t c = 1; c < C; ++c) top = hn::Max(top, hn::LoadU(d, U + c * kBlock + r));
        Vec sum = zero;
        for (int64_t c = 0; c < C; ++c) {
          const Vec e = hn::Exp(d, hn::Sub(hn::LoadU(d, U + c * kBlock + r), top));
          hn::StoreU(e, d, S + c * kBlock + r);
          sum = hn::Add(sum, e);
        }
        hn::StoreU(hn::Sub(hn::Add(hn::Log(d, sum), top), hn::LoadU(d, t + r)), d, l + r);
        const Vec inverse = hn::Div(one, sum), weight = hn::LoadU(d, w + r);
        for (int64_t c = 0; c < C; ++c) {
          const Vec p = hn::Mul(hn::LoadU(d, S + c * kBlock + r), inverse);
          hn::StoreU(p, d, S + c * kBlock + r);
          hn::StoreU(hn::Mul(weight, p), d, U + c * kBlock + r);
        }
      });
      for (int r = 0; r < block.rows; ++r) {
        const int64_t at = s.labels[block.sample[r]] * kBlock + r;
        U[at] = w[r] * (S[at] - T(1));
      }
      return;
    }
    case Link::kLogistic: {
      take_targets(s, block, 0, t);
      along<T>(block.padded, [&](int r) HWY_ATTR {
        const Vec sign = hn::LoadU(d, t + r), margin = hn::Mul(sign, hn::LoadU(d, U + r));
        const Vec e = hn::Exp(d, hn::Neg(hn::Abs(margin)));
        const auto right = hn::Ge(margin, zero), lost = hn::IsNaN(margin);  // what exp makes of a NaN is no NaN
        const Vec q = hn::IfThenElse(lost, margin, hn::Div(hn::IfThenElse(right, e, one), hn::Add(one, e)));
        const Vec loss = hn::Add(hn::Log1p(d, e), hn::IfThenElse(right, zero, hn::Neg(margin)));
        hn::StoreU(hn::IfThenElse(lost, margin, loss), d, l + r);
        hn::StoreU(q, d, S + r);
        hn::StoreU(hn::Neg(hn::Mul(hn::LoadU(d, w + r), hn::Mul(sign, q))), d, U + r);
      });
      return;
    }
    case Link::kSquared: {
      std::fill(l, l + kBlock, T(0));
      for (int64_t c = 0; c < C; ++c) {
        take_targets(s, block, c, t);
        along<T>(block.padded, [&](int r) HWY_ATTR {
          const Vec e = hn::Sub(hn::LoadU(d, U + c * kBlock + r), hn::LoadU(d, t + r));
          hn::StoreU(hn::MulAdd(hn::Mul(e, e), hn::Set(d, T(0.5)), hn::LoadU(d, l + r)), d, l + r);
          hn::StoreU(e, d, S + c * kBlock + r);
          hn::StoreU(hn::Mul(hn::LoadU(d, w + r), e), d, U + c * kBlock + r);
        });
      }
      return;
    }
    case Link::kPoisson: {
      std::fill(l, l + kBlock, T(0));
      for (int64_t c = 0; c < C; ++c) {
        take_targets(s, block, c, t);
        along<T>(block.padded, [&](int r) HWY_ATTR {
          const Vec z = hn::LoadU(d, U + c * kBlock + r), count = hn::LoadU(d, t + r);
          const Vec mean = hn::IfThenElse(hn::IsNaN(z), z, hn::Exp(d, z));
          hn::StoreU(hn::Add(hn::LoadU(d, l + r), hn::NegMulAdd(count, z, mean)), d, l + r);
          hn::StoreU(mean, d, S + c * kBlock + r);
          hn::StoreU(hn::Mul(hn::LoadU(d, w + r), hn::Sub(mean, count)), d, U + c * kBlock + r);
        });
      }
      return;
    }
  }
}

// From u = V a in U: R = w ∂²ℓ/∂z² u in its place, and ⟨∂ℓ/∂z, u⟩ in `slope`.
template <class T>
void second_order(const Samples<T>& s, const Block<T>& block, const T* w, const T* S, T* U, T* slope, T* t) {
  const Tag<T> d;
  using Vec = hn::Vec<Tag<T>>;
  const int64_t C = s.classes;
  const Vec one = hn::Set(d, T(1));
  switch (s.link) {
    case Link::kSoftmax: {
      for (int r = 0; r < block.rows; ++r) t[r] = U[s.labels[block.sample[r]] * kBlock + r];
      along<T>(block.padded, [&](int r) HWY_ATTR {
        Vec mean = hn::Zero(d);
        for (int64_t c = 0; c < C; ++c) {
          mean = hn::MulAdd(hn::LoadU(d, S + c * kBlock + r), hn::LoadU(d, U + c * kBlock + r), mean);
        }
        hn::StoreU(hn::Sub(mean, hn::LoadU(d, t + r)), d, slope + r);
        const Vec weight = hn::LoadU(d, w + r);
        for (int64_t c = 0; c < C; ++c) {
          const Vec u = hn::Sub(hn::LoadU(d, U + c * kBlock + r), mean);
          hn::StoreU(hn::Mul(hn::Mul(weight, hn::LoadU(d, S + c * kBlock + r)), u), d, U + c * kBlock + r);
        }
      });
      return;
    }
    case Link::kLogistic: {
      take_targets(s, block, 0, t);
      along<T>(block.padded, [&](int r) HWY_ATTR {
        const Vec q = hn::LoadU(d, S + r), u = hn::LoadU(d, U + r);
        hn::StoreU(hn::Neg(hn::Mul(hn::Mul(hn::LoadU(d, t + r), q), u)), d, slope + r);
        hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, w + r), hn::Mul(q, hn::Sub(one, q))), u), d, U + r);
      });
      return;
    }
    case Link::kSquared:
    case Link::kPoisson: {
      std::fill(slope, slope + kBlock, T(0));
      const bool squared = s.link == Link::kSquared;
      for (int64_t c = 0; c < C; ++c) {
        if (!squared) take_targets(s, block, c, t);
        along<T>(block.padded, [&](int r) HWY_ATTR {
          const Vec state = hn::LoadU(d, S + c * kBlock + r), u = hn::LoadU(d, U + c * kBlock + r);
          const Vec derivative = squared ? state : hn::Sub(state, hn::LoadU(d, t + r));
          hn::StoreU(hn::MulAdd(derivative, u, hn::LoadU(d, slope + r)), d, slope + r);
          const Vec wu = hn::Mul(hn::LoadU(d, w + r), u);
          hn::StoreU(squared ? wu : hn::Mul(wu, state), d, U + c * kBlock + r);
        });
      }
      return;
    }
  }
}

// R = w ∂ℓ/∂z from the state.
template <class T>
void derivative(const Samples<T>& s, const Block<T>& block, const T* w, const T* S, T* R, T* t) {
  for (int64_t c = 0; c < s.classes; ++c) {
    const T* Sc = S + c * kBlock;
    T* Rc = R + c * kBlock;
    if (s.link == Link::kLogistic || s.link == Link::kPoisson) take_targets(s, block, c, t);
    switch (s.link) {
      case Link::kLogistic:
        for (int r = 0; r < block.rows; ++r) Rc[r] = -w[r] * t[r] * Sc[r];
        break;
      case Link::kPoisson:
        for (int r = 0; r < block.rows; ++r) Rc[r] = w[r] * (Sc[r] - t[r]);
        break;
      case Link::kSoftmax:
      case Link::kSquared:
        for (int r = 0; r < block.rows; ++r) Rc[r] = w[r] * Sc[r];
        break;
    }
  }
  if (s.link != Link::kSoftmax) return;
  for (int r = 0; r < block.rows; ++r) {
    const int64_t at = s.labels[block.sample[r]] * kBlock + r;
    R[at] = w[r] * (S[at] - T(1));
  }
}

// In double, by sums that do not wait for each other.
template <class T>
double inner_product(const T* a, const T* b, int size) {
  double sums[4] = {};
  for (int r = 0; r < size; ++r) sums[r % 4] += static_cast<double>(a[r]) * static_cast<double>(b[r]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class T>
double gradient(const Samples<T>& s, const T* V, int64_t first, int64_t last, T* G, T* state, T* losses, T* work) {
  const int64_t C = s.classes, K = s.models;
  T *U = work, *own_state = U + K * C * kBlock, *w = own_state + C * kBlock, *l = w + kBlock, *t = l + kBlock;
  double value = 0;
  for (int64_t b = first; b < last; ++b) {
    const Block<T> block = block_at(s, b);
    dot(s, block, V, K * C, U);
    for (int64_t k = 0; k < K; ++k) {
      take_weights(s, block, weights_of(s, s.weights, k), w);
      first_order(s, block, w, U + k * C * kBlock, state ? state + (b * K + k) * C * kBlock : own_state, l, t);
      value += inner_product(w, l, block.rows);
      if (losses) std::copy(l, l + block.rows, losses + k * s.n + block.first);
    }
    if (G) outer(s, block, U, K * C, G, b + 1 < last ? b + 1 : s.n);
  }
  return value;
}

template <class T>
void curvature(const Samples<T>& s, const T* V, int64_t k, int64_t first, int64_t last, const T* state, T* G, T* cross, T* work) {
  const int64_t C = s.classes, K = s.models;
  T *U = work, *w = U + k * K * C * kBlock, *slope = w + kBlock, *t = slope + kBlock;
  for (int64_t b = first; b < last; ++b) {
    const Block<T> block = block_at(s, b);
    dot(s, block, V, k * K * C, U);
    for (int64_t m = 0; m < K; ++m) {
      take_weights(s, block, weights_of(s, s.weights, m), w);
      for (int64_t i = 0; i < k; ++i) {
        second_order(s, block, w, state + (b * K + m) * C * kBlock, U + (i * K + m) * C * kBlock, slope, t);
        if (!cross) continue;
        T* const of_weights = cross + (i * K + m) * s.n + block.first;
        for (int r = 0; r < block.rows; ++r) of_weights[r] = slope[r] * static_cast<T>(s.scale);
      }
    }
    if (G) outer(s, block, U, k * K * C, G, b + 1 < last ? b + 1 : s.n);
  }
}

template <class T>
double joint(const Samples<T>& s, const T* V, int64_t first, int64_t last, T* G, T* losses, T* cross, T* work) {
  const int64_t C = s.classes, K = s.models;
  T *U = work, *state = U + 2 * K * C * kBlock, *w = state + C * kBlock, *l = w + kBlock, *slope = l + kBlock,
    *t = slope + kBlock;
  double value = 0;
  for (int64_t b = first; b < last; ++b) {
    const Block<T> block = block_at(s, b);
    dot(s, block, V, 2 * K * C, U);
    for (int64_t k = 0; k < K; ++k) {
      take_weights(s, block, weights_of(s, s.weights, k), w);
      first_order(s, block, w, U + k * C * kBlock, state, l, t);
      second_order(s, block, w, state, U + (K + k) * C * kBlock, slope, t);
      value += inner_product(w, l, block.rows);
      const int64_t at = k * s.n + block.first;
      std::copy(l, l + block.rows, losses + at);
      for (int r = 0; r < block.rows; ++r) cross[at + r] = slope[r] * static_cast<T>(s.scale);
    }
    outer(s, block, U, 2 * K * C, G, b + 1 < last ? b + 1 : s.n);
  }
  return value;
}

template <class T>
void map(Phi phi, const T* x, int64_t n, T* values, T* slopes) {
  const Tag<T> d;
  using Vec = hn::Vec<Tag<T>>;
  const int64_t L = static_cast<int64_t>(hn::Lanes(d));
  const Vec zero = hn::Zero(d), one = hn::Set(d, T(1));
  const auto vector = [&](const T* in, T* value, T* slope) HWY_ATTR {
    const Vec v = hn::LoadU(d, in);
    Vec f = v, df = one;
    if (phi == Phi::kExp) {
      f = df = hn::Exp(d, v);
    } else if (phi != Phi::kIdentity) {
      const Vec e = hn::Exp(d, hn::Neg(hn::Abs(v))), inverse = hn::Div(one, hn::Add(one, e));
      const Vec sigmoid = hn::Mul(hn::IfThenElse(hn::Ge(v, zero), one, e), inverse);
      f = phi == Phi::kSigmoid ? sigmoid : hn::Add(hn::Log1p(d, e), hn::Max(v, zero));
      df = phi == Phi::kSigmoid ? hn::Mul(e, hn::Mul(inverse, inverse)) : sigmoid;
    }
    const auto lost = hn::IsNaN(v);  // what exp makes of a NaN is no NaN
    hn::StoreU(hn::IfThenElse(lost, v, f), d, value);
    hn::StoreU(hn::IfThenElse(lost, v, df), d, slope);
  };
  int64_t i = 0;
  for (; i + L <= n; i += L) vector(x + i, values + i, slopes + i);
  if (i == n) return;
  T in[kPad<T>] = {}, value[kPad<T>], slope[kPad<T>];
  std::copy(x + i, x + n, in);
  vector(in, value, slope);
  std::copy(value, value + (n - i), values + i);
  std::copy(slope, slope + (n - i), slopes + i);
}

template <class T>
void weighted(const Samples<T>& s, const T* weights, int64_t k, int64_t first, int64_t last, const T* state, T* G, T* work) {
  const int64_t C = s.classes, K = s.models;
  T *R = work, *w = R + k * K * C * kBlock, *t = w + kBlock;
  for (int64_t b = first; b < last; ++b) {
    const Block<T> block = block_at(s, b);
    for (int64_t i = 0; i < k * K; ++i) {
      take_weights(s, block, weights + i * s.n, w);
      derivative(s, block, w, state + (b * K + i % K) * C * kBlock, R + i * C * kBlock, t);
    }
    outer(s, block, R, k * K * C, G, b + 1 < last ? b + 1 : s.n);
  }
}

}  // namespace

template <class T>
Passes<T> table() {
  return {&gradient<T>, &curvature<T>, &joint<T>, &weighted<T>, &map<T>};
}
Passes<float> float_table() { return table<float>(); }
Passes<double> double_table() { return table<double>(); }
const char* name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace bilevel::native
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bilevel::native {

HWY_EXPORT(float_table);
HWY_EXPORT(double_table);
HWY_EXPORT(name);

Passes<float> float_passes() { return HWY_DYNAMIC_DISPATCH(float_table)(); }
Passes<double> double_passes() { return HWY_DYNAMIC_DISPATCH(double_table)(); }
const char* instruction_set() { return HWY_DYNAMIC_DISPATCH(name)(); }

std::vector<int64_t> instruction_sets() { return hwy::SupportedAndGeneratedTargets(); }
void pretend(int64_t instruction_set) {
  hwy::SetSupportedTargetsForTest(instruction_set);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace bilevel::native
#endif
