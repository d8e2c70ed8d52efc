// SPDX-License-Identifier: Apache-2.0
// RoundToFloat8: x / scale rounded to an 8-bit float, times scale; what is out of range becomes the largest value.
//
//   x [..., K] fp32, scale [] fp32 (optional; without it each row has its own) -> y [..., K] fp32
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "common/float8.h"
#include "common/float_formats.h"
#include "common/ort_op.h"
#include "common/simd.h"
#include "common/thread_pool.h"

namespace poptransformer {
namespace {

constexpr float kSmallestScale = 0x1p-120f;  // of a row of zeros
constexpr uint32_t kExponent = 0x7f800000u;
constexpr uint32_t kMantissa = 0x007fffffu;

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

/// How to round to one format.
struct Rounding {
  float max;
  uint32_t least_exponent;  // fp32 bits of the smallest normal number
  uint32_t lift;            // added to the bits of an exponent, gives the bits of `big`

  explicit Rounding(const Float8Format& format)
      : max(format.max),
        least_exponent(static_cast<uint32_t>(format.min_exponent() + 127) << 23),
        lift((static_cast<uint32_t>(23 - format.mantissa_bits) << 23) | 0x00400000u) {}
};

/// Adding and subtracting 1.5 * 2^23 steps leaves a multiple of the step, rounded to nearest even. NaN stays NaN.
inline __attribute__((always_inline)) void round_values(const Rounding& rounding, float scale, const float* x,
                                                        int64_t count, float* y) {
  const float max = rounding.max;
  for (int64_t i = 0; i < count; ++i) {
    float value = x[i] / scale;
    value = value > max ? max : value;
    value = value < -max ? -max : value;
    const uint32_t exponent = std::max(bits_of(value) & kExponent, rounding.least_exponent);
    const float big = float_from_bits(exponent + rounding.lift);
    const float lifted = value + big;
    y[i] = (lifted - big) * scale;
  }
}

/// max |x|: magnitudes order like their bits.
inline __attribute__((always_inline)) float largest_magnitude(const float* x, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, bits_of(x[i]) & 0x7fffffffu);
  return float_from_bits(largest);
}

void round_portable(const Rounding& rounding, float scale, const float* x, int64_t count, float* y) {
  round_values(rounding, scale, x, count, y);
}

float amax_portable(const float* x, int64_t count) { return largest_magnitude(x, count); }

#if POPTRANSFORMER_X86
POPTRANSFORMER_AVX2 void round_avx2(const Rounding& rounding, float scale, const float* x, int64_t count, float* y) {
  round_values(rounding, scale, x, count, y);
}

POPTRANSFORMER_AVX2 float amax_avx2(const float* x, int64_t count) { return largest_magnitude(x, count); }
#endif

/// The smallest power of two that is not below a positive number.
inline float power_of_two_above(float value) {
  const uint32_t bits = bits_of(value);
  return float_from_bits((bits & kMantissa) == 0 ? bits : (bits & kExponent) + 0x00800000u);
}

class RoundToFloat8 {
 public:
  static OpSpec spec() {
    return {"RoundToFloat8", {{"x", kFloat32}, {"scale", kFloat32, kOptional}}, {{"y", kFloat32}}};
  }

  explicit RoundToFloat8(const Attributes& attributes)
      : rounding_(read_format(attributes)), by_power_of_two_(attributes.get_string("scaling") == "power_of_two") {
    const std::string scaling = attributes.get_string("scaling");
    if (!by_power_of_two_ && scaling != "amax") attributes.reject("scaling", "amax or power_of_two", scaling);
  }

  void compute(Call& call) const {
    const Tensor x = call.input(0), scale = call.input(1);
    if (x.shape.rank == 0) x.reject("of rank 1 or more", "a scalar");
    if (scale && scale.shape.size() != 1) scale.reject("one value", scale.shape.text());
    float* y = call.output<float>(0, x.shape);
    const int64_t depth = x.shape.last();
    if (depth == 0) return;
    const float* const given = scale.as<float>();
    ThreadPool::run_for(x.shape.size(), [&](int part, int parts) {
      const Range rows = share(x.shape.size() / depth, part, parts);
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float* const values = x.as<float>() + row * depth;
        POPTRANSFORMER_PICK(round)(rounding_, given ? *given : own_scale(values, depth), values, depth, y + row * depth);
      }
    });
  }

 private:
  static Rounding read_format(const Attributes& attributes) {
    const std::string name = attributes.get_string("format");
    const Float8Format* const format = find_float8(name);
    if (format == nullptr) attributes.reject("format", "e4m3fn, e5m2, e4m3fnuz or e5m2fnuz", name);
    return Rounding(*format);
  }

  float own_scale(const float* row, int64_t depth) const {
    const float scale = std::max(POPTRANSFORMER_PICK(amax)(row, depth) / rounding_.max, kSmallestScale);
    return by_power_of_two_ ? power_of_two_above(scale) : scale;
  }

  Rounding rounding_;
  bool by_power_of_two_;
};

}  // namespace

POPTRANSFORMER_REGISTER_OP(RoundToFloat8)

}  // namespace poptransformer
