// Of softmax, ∂z ℓ = p − e_t; of logistic with t = ±1, −t σ(−t z); of a normal distribution, z − t.
#include "bilevel/problem/likelihood.h"

#include <ATen/ATen.h>

#include <limits>
#include <vector>

#include "bilevel/core/stream.h"

namespace bilevel {
namespace {

// Uniform on (0, 1), [C, B]: sample i's are a function of its number.
at::Tensor uniforms(uint64_t seed, const at::Tensor& samples, int64_t outputs) {
  const Stream stream(seed, "labels of the model");
  const at::Tensor numbers = samples.to(at::kCPU, at::kLong).contiguous();
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < numbers.size(0); ++i)
    rows.push_back(stream.at(numbers.const_data_ptr<int64_t>()[i]).uniform({outputs}));
  return rows.empty() ? at::empty({outputs, 0}, at::kDouble) : at::stack(rows, 1).clamp_(std::numeric_limits<double>::min());
}

// ∂z ℓ where the labels are drawn from p(· | z).
at::Tensor sampled(const Likelihood& likelihood, const at::Tensor& z, const at::Tensor& u) {
  switch (likelihood.kind) {
    case Loss::Kind::kSoftmax: {  // Gumbel's way: the largest of z_c − log(−log u_c)
      const at::Tensor t = (z.to(at::kDouble) - u.log().neg().log()).argmax(0, /*keepdim=*/true);
      return z.softmax(0) - at::zeros_like(z).scatter(0, t, 1);
    }
    case Loss::Kind::kLogistic: {
      const at::Tensor p = z.sigmoid();
      return p - u.lt(p).to(z.scalar_type());
    }
    case Loss::Kind::kSquared: break;
  }
  return at::special_ndtri(u).to(z.scalar_type());
}

at::Tensor observed(const Likelihood& likelihood, const at::Tensor& z) {
  const at::Tensor& t = likelihood.targets;
  switch (likelihood.kind) {
    case Loss::Kind::kSoftmax: return z.softmax(0) - at::zeros_like(z).scatter(0, t, 1);
    case Loss::Kind::kLogistic: return -t * (-t * z).sigmoid();
    case Loss::Kind::kSquared: break;
  }
  return z - t;
}

// √p(t | z) ∂z ℓ(z, t) for each t, [k, C, B].
at::Tensor enumerated(const Likelihood& likelihood, const at::Tensor& z) {
  const at::Tensor eye = at::eye(z.size(0), z.options()).unsqueeze(2);  // t along the first dimension
  switch (likelihood.kind) {
    case Loss::Kind::kSoftmax: {
      const at::Tensor p = z.softmax(0);
      return p.sqrt().unsqueeze(1) * (p.unsqueeze(0) - eye);
    }
    case Loss::Kind::kLogistic: {
      const at::Tensor p = z.sigmoid(), q = (-z).sigmoid();
      return at::stack({p.sqrt() * -q, q.sqrt() * p});
    }
    case Loss::Kind::kSquared: break;
  }
  return eye.expand({z.size(0), z.size(0), z.size(1)});
}

}  // namespace

int64_t labels_of_each(const Likelihood& likelihood, Labels labels) {
  if (labels != Labels::kEnumerated) return 1;
  return likelihood.kind == Loss::Kind::kLogistic ? 2 : likelihood.outputs;
}

at::Tensor output_scores(const Likelihood& likelihood, const at::Tensor& z, Labels labels, uint64_t seed,
                         const at::Tensor& samples) {
  const at::NoGradGuard no_grad;
  const at::Tensor root = likelihood.weights.sqrt();
  switch (labels) {
    case Labels::kObserved: return (root * observed(likelihood, z)).unsqueeze(0);
    case Labels::kSampled: return (root * sampled(likelihood, z, uniforms(seed, samples, z.size(0)).to(z.device()))).unsqueeze(0);
    case Labels::kEnumerated: break;
  }
  return root * enumerated(likelihood, z);
}

}  // namespace bilevel
