// SPDX-License-Identifier: Apache-2.0
#include "quantized_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../common/simd.h"

namespace poptransformer {
namespace {

constexpr int64_t kBlock = 32;
/// Blocks with no value as large as this are zero: 127 / max|x| would come close to fp32's largest number.
constexpr float kLeast = 0x1p-100f;

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

/// Where the results of consecutive blocks go.
struct Blocks {
  int8_t* codes;
  float* scales;
  int32_t* sums;
  float* totals;

  Blocks from(int64_t block) const { return {codes + block * kBlock, scales + block, sums + block, totals + block}; }
  void set_sum(int64_t block, int32_t sum) const {
    sums[block] = sum;
    totals[block] = static_cast<float>(sum) * scales[block];
  }
};

/// The factor from a value to its code, for blocks whose largest value has these bits; sets the block's scale. Bits of
/// finite numbers without a sign compare like the numbers, and those of infinity and NaN are greater.
inline float code_factor(int32_t greatest_bits, float* scale) {
  float greatest;
  std::memcpy(&greatest, &greatest_bits, sizeof greatest);
  const bool finite = greatest_bits < 0x7f800000, counts = finite && greatest >= kLeast;
  *scale = counts ? greatest / 127.0f : finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  return counts ? 127.0f / greatest : 0.0f;
}

void quantize_portable(const float* x, int64_t blocks, const Blocks& out) {
  for (int64_t b = 0; b < blocks; ++b, x += kBlock) {
    int32_t greatest = 0;
    for (int64_t i = 0; i < kBlock; ++i) {
      int32_t bits;
      std::memcpy(&bits, x + i, sizeof bits);
      greatest = std::max(greatest, bits & 0x7fffffff);
    }
    const float factor = code_factor(greatest, out.scales + b);
    int32_t sum = 0;
    for (int64_t i = 0; i < kBlock; ++i) {
      // Without a factor the values may be beyond what an int8 can hold, or not even numbers.
      const auto code = static_cast<int8_t>(factor > 0.0f ? std::nearbyint(x[i] * factor) : 0.0f);
      out.codes[b * kBlock + i] = code;
      sum += code;
    }
    out.set_sum(b, sum);
  }
}

#if POPTRANSFORMER_X86

POPTRANSFORMER_AVX2 inline __m128i max_of(__m256i v) {
  const __m128i half = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i pair = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_max_epi32(pair, _mm_shuffle_epi32(pair, 0xb1));
}

POPTRANSFORMER_AVX2 inline __m128i sum_of(__m256i v) {
  const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i pair = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_add_epi32(pair, _mm_shuffle_epi32(pair, 0xb1));
}

/// round(x * factor); zero where the factor is zero, even of infinity and NaN.
POPTRANSFORMER_AVX2 inline __m256i codes_of(__m256 x, __m256 factor) {
  const __m256 counts = _mm256_cmp_ps(factor, _mm256_setzero_ps(), _CMP_GT_OQ);
  return _mm256_cvtps_epi32(_mm256_and_ps(_mm256_mul_ps(x, factor), counts));
}

POPTRANSFORMER_AVX2 void quantize_avx2(const float* x, int64_t blocks, const Blocks& out) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int64_t b = 0; b < blocks; ++b, x += kBlock) {
    __m256 values[4];
    __m256i bits[4], codes[4];
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < 4; ++i) {
      values[i] = _mm256_loadu_ps(x + 8 * i);
      bits[i] = _mm256_castps_si256(_mm256_and_ps(values[i], magnitude));
    }
    const __m256i greatest = _mm256_max_epi32(_mm256_max_epi32(bits[0], bits[1]), _mm256_max_epi32(bits[2], bits[3]));
    const __m256 factor = _mm256_set1_ps(code_factor(_mm_cvtsi128_si32(max_of(greatest)), out.scales + b));
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < 4; ++i) codes[i] = codes_of(values[i], factor);
    const __m256i sums = _mm256_add_epi32(_mm256_add_epi32(codes[0], codes[1]), _mm256_add_epi32(codes[2], codes[3]));
    out.set_sum(b, _mm_cvtsi128_si32(sum_of(sums)));
    // Packing goes by halves of a vector, and leaves runs of four codes out of order.
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(codes[0], codes[1]),
                                              _mm256_packs_epi32(codes[2], codes[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.codes + b * kBlock),
                        _mm256_permutevar8x32_epi32(packed, in_order));
  }
}

/// Blocks that `quantize_avx512` takes at a time: one vector for a number of each.
constexpr int64_t kGroup = 16;

struct Greater {
  POPTRANSFORMER_AVX512 static __m512i of(__m512i a, __m512i b) { return _mm512_max_epi32(a, b); }
};
struct Sum {
  POPTRANSFORMER_AVX512 static __m512i of(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
};

/// Value i of the result is what `Of` makes of the 16 values of v[i]; all are overwritten. Halves of two vectors become
/// one vector, four times.
template <class Of>
POPTRANSFORMER_AVX512 inline __m512i reduce16(__m512i* v) {
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 8; ++i) {
    v[i] = Of::of(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
  }
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 4; ++i) {
    v[i] = Of::of(_mm512_unpacklo_epi64(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi64(v[2 * i], v[2 * i + 1]));
  }
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 2; ++i) {
    v[i] = Of::of(_mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0x88),
                  _mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0xdd));
  }
  return Of::of(_mm512_shuffle_i32x4(v[0], v[1], 0x88), _mm512_shuffle_i32x4(v[0], v[1], 0xdd));
}

/// A group of blocks.
POPTRANSFORMER_AVX512 inline void quantize_group(const float* x, const Blocks& out) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i found[kGroup];
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < kGroup; ++i) {
    found[i] = _mm512_max_epi32(_mm512_and_si512(_mm512_loadu_si512(x + i * kBlock), magnitude),
                                _mm512_and_si512(_mm512_loadu_si512(x + i * kBlock + 16), magnitude));
  }
  const __m512i bits = reduce16<Greater>(found);
  // As `code_factor` has it.
  const __m512 greatest = _mm512_castsi512_ps(bits), most = _mm512_set1_ps(127.0f);
  const __mmask16 finite = _mm512_cmplt_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
  const __mmask16 counts = _mm512_mask_cmp_ps_mask(finite, greatest, _mm512_set1_ps(kLeast), _CMP_GE_OQ);
  const __m512 otherwise = _mm512_mask_mov_ps(_mm512_set1_ps(std::numeric_limits<float>::quiet_NaN()), finite,
                                              _mm512_setzero_ps());
  const __m512 scales = _mm512_mask_div_ps(otherwise, counts, greatest, most);
  float factors[kGroup];
  _mm512_storeu_ps(factors, _mm512_maskz_div_ps(counts, most, greatest));
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < kGroup; ++i) {
    const __m512 factor = _mm512_set1_ps(factors[i]);
    const auto all = static_cast<__mmask16>(-(counts >> i & 1));  // Else zero, even of infinity and NaN.
    const __m512i low = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(all, _mm512_loadu_ps(x + i * kBlock), factor));
    const __m512i high = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(all, _mm512_loadu_ps(x + i * kBlock + 16), factor));
    auto* const codes = reinterpret_cast<__m128i*>(out.codes + i * kBlock);
    _mm_storeu_si128(codes, _mm512_cvtepi32_epi8(low));
    _mm_storeu_si128(codes + 1, _mm512_cvtepi32_epi8(high));
    found[i] = _mm512_add_epi32(low, high);
  }
  const __m512i sums = reduce16<Sum>(found);
  _mm512_storeu_ps(out.scales, scales);
  _mm512_storeu_si512(out.sums, sums);
  _mm512_storeu_ps(out.totals, _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scales));
}

POPTRANSFORMER_AVX512 void quantize_avx512(const float* x, int64_t blocks, const Blocks& out) {
  int64_t b = 0;
  for (; b + kGroup <= blocks; b += kGroup) quantize_group(x + b * kBlock, out.from(b));
  quantize_avx2(x + b * kBlock, blocks - b, out.from(b));
}

#endif  // POPTRANSFORMER_X86

}  // namespace

size_t quantized_rows_bytes(int64_t rows, int64_t padded) {
  const size_t codes = static_cast<size_t>(rows * padded), blocks = codes / kBlock;
  return aligned(codes) + 3 * aligned(blocks * sizeof(float));
}

QuantizedRows quantized_rows_at(void* memory, int64_t rows, int64_t padded) {
  const size_t codes = static_cast<size_t>(rows * padded), each = aligned(codes / kBlock * sizeof(float));
  char* place = static_cast<char*>(memory);
  QuantizedRows out;
  out.codes = reinterpret_cast<int8_t*>(place);
  place += aligned(codes);
  out.scales = reinterpret_cast<float*>(place);
  out.sums = reinterpret_cast<int32_t*>(place + each);
  out.totals = reinterpret_cast<float*>(place + 2 * each);
  out.padded = padded;
  return out;
}

void quantize_rows(const float* x, int64_t ld, int64_t depth, Range range, const QuantizedRows& out) {
  const auto quantize = POPTRANSFORMER_PICK3(quantize);
  const int64_t blocks = out.padded / kBlock, whole = depth / kBlock, rest = depth % kBlock;
  for (int64_t row = range.begin; row < range.end; ++row) {
    const float* const source = x + row * ld;
    const int64_t first = row * blocks;
    const Blocks target{out.codes + row * out.padded, out.scales + first, out.sums + first, out.totals + first};
    quantize(source, whole, target);
    int64_t done = whole;
    if (rest > 0) {
      float part[kBlock] = {};
      std::copy_n(source + whole * kBlock, rest, part);
      quantize(part, 1, target.from(done++));
    }
    std::fill_n(target.codes + done * kBlock, (blocks - done) * kBlock, int8_t{0});
    std::fill_n(target.scales + done, blocks - done, 0.0f);
    std::fill_n(target.sums + done, blocks - done, 0);
    std::fill_n(target.totals + done, blocks - done, 0.0f);
  }
}

}  // namespace poptransformer
