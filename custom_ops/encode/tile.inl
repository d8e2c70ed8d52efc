// SPDX-License-Identifier: Apache-2.0
// The encoder proper, for kWidth rows at a time: tries scales, keeps the one of the smallest weighed squared error, and
// writes codes. Included once for each instruction set (tile.cpp). poptransformer/quantization/search.py does the same
// in NumPy, operation by operation; the tests compare the bits.

/// kWidth rows of one block.
struct Rows {
  const EncodeRequest* request;
  const float* x;        ///< Transposed: column k of the rows at x[k * kTileRows].
  const float* weights;  ///< [columns], of squared errors.
  int64_t columns;       ///< Without padding.
};

/// What one pass over the rows adds up. With code q, weight w and error e: sums of w e e, w e, w q e, w q, w q q, w.
struct Sums {
  Floats cost{}, e{}, qe{}, q{}, qq{}, w{};
};

struct Choice {
  Floats scale{}, offset{}, cost{};
};

struct Integers {
  static Floats round(const EncodeRequest& r, Floats value) {
    return round_integer(greatest(least(value, all(r.high)), all(r.low)));
  }
  static Ints is_beyond(const EncodeRequest& r, Floats value) {
    const Floats rounded = round_integer(value);
    return (rounded > all(r.high)) | (rounded < all(r.low));
  }
  static Ints code(const EncodeRequest& r, Floats value) {
    return __builtin_convertvector(value, Ints) + static_cast<int32_t>(r.offsets != nullptr ? 0 : r.zero);
  }
};

struct SmallFloats {
  static Floats round(const EncodeRequest& r, Floats value) {
    return round_float(value, static_cast<int>(r.mantissa), static_cast<int>(r.min_exponent), r.high);
  }
  static Ints is_beyond(const EncodeRequest& r, Floats value) { return magnitude(value) > all(r.overflow); }
  static Ints code(const EncodeRequest& r, Floats value) {
    const int mantissa = static_cast<int>(r.mantissa), min_exponent = static_cast<int>(r.min_exponent);
    const Floats size = magnitude(value);
    const Floats steps = size * all(std::ldexp(1.0f, mantissa - min_exponent));  // Subnormals are multiples of one step.
    const Ints normal = (bits(size) >> (23 - mantissa)) - ((126 + min_exponent) << mantissa);
    const Ints is_small = size < all(std::ldexp(1.0f, min_exponent));
    const Ints code = is_small ? __builtin_convertvector(select(is_small, steps, Floats{}), Ints) : normal;
    const Ints has_sign = (bits(value) < 0) & ((code != 0) | (r.signed_zero ? Ints{} - 1 : Ints{}));
    return code | (has_sign & 0x80);
  }
};

template <class Kind, bool kStatistics>
Sums pass(const Rows& rows, Floats scale, Floats offset) {
  const EncodeRequest request = *rows.request;
  const Floats inverse_scale = inverse(scale);
  const bool shifted = request.offsets != nullptr;
  Sums sums;
  for (int64_t k = 0; k < rows.columns; ++k) {
    const Floats x = load(rows.x + k * kTileRows);
    const Floats q = Kind::round(request, (shifted ? x - offset : x) * inverse_scale);
    const Floats e = x - (shifted ? q * scale + offset : q * scale);
    const Floats we = rows.weights[k] * e;
    sums.cost += we * e;
    if (kStatistics) {
      const Floats wq = rows.weights[k] * q;
      sums.e += we;
      sums.qe += we * q;
      sums.q += wq;
      sums.qq += wq * q;
      sums.w += rows.weights[k];
    }
  }
  return sums;
}

inline void keep_better(Choice& best, Floats scale, Floats offset, Floats cost, bool first) {
  const Ints better = first ? Ints{} - 1 : cost < best.cost;
  best.scale = select(better, scale, best.scale);
  best.offset = select(better, offset, best.offset);
  best.cost = select(better, cost, best.cost);
}

inline Floats clamp_power(Floats value) { return greatest(least(value, all(0x1p31f)), all(0x1p-32f)); }

/// The scale that the largest magnitude asks for.
inline Floats base_scale(const Rows& rows) {
  const EncodeRequest& r = *rows.request;
  if (r.base != nullptr) return all(*r.base);
  Floats extreme{};
  for (int64_t k = 0; k < rows.columns; ++k) {
    const Floats x = load(rows.x + k * kTileRows);
    extreme = select(magnitude(x) > magnitude(extreme), x, extreme);
  }
  const Floats base = (r.end_divisor < 0 ? extreme : magnitude(extreme)) / all(r.end_divisor);
  if (!r.power_of_two) return base;
  const Ints up = (bits(base) & 0x7fffff) != 0 ? Ints{} + 0x800000 : Ints{};
  return clamp_power(from_bits((bits(base) & 0x7f800000) + up));
}

template <class Kind>
inline Floats stored(const EncodeRequest& r, Floats scale) {
  if (r.power_of_two) return clamp_power(scale);
  return r.mantissa < 0 ? round_half(scale) : scale;
}

template <class Kind>
Choice search_scale(const Rows& rows) {
  const EncodeRequest& r = *rows.request;
  const Floats base = base_scale(rows);
  Choice best;
  for (int64_t c = 0; c < r.count; ++c) {
    const Floats scale = stored<Kind>(r, base * r.candidates[c]);
    const bool only = r.count == 1 && r.refits == 0;
    keep_better(best, scale, Floats{}, only ? Floats{} : pass<Kind, false>(rows, scale, Floats{}).cost, c == 0);
  }
  for (int64_t i = 0; i < r.refits; ++i) {
    const Sums sums = pass<Kind, true>(rows, best.scale, Floats{});
    const Ints solvable = sums.qq > Floats{};
    const Floats change = select(solvable, sums.qe / select(solvable, sums.qq, all(1.0f)), Floats{});
    const Floats scale = stored<Kind>(r, best.scale + change);
    keep_better(best, scale, Floats{}, pass<Kind, false>(rows, scale, Floats{}).cost, false);
  }
  return best;
}

/// Solves for the scale and offset that fit the codes best, given how they fit now, and keeps them if they are better.
inline void refit_both(const Rows& rows, Floats scale, Floats offset, const Sums& s, Choice& best) {
  const Floats determinant = s.w * s.qq - s.q * s.q;
  const Ints solvable = determinant > Floats{}, weighed = s.w > Floats{};
  const Floats change = (s.w * s.qe - s.q * s.e) / select(solvable, determinant, all(1.0f));
  const Floats by = select(solvable, change, Floats{});
  const Floats shift = select(weighed, (s.e - by * s.q) / select(weighed, s.w, all(1.0f)), Floats{});
  const Floats new_scale = round_half(scale + by), new_offset = round_half(offset + shift);
  keep_better(best, new_scale, new_offset, pass<Integers, false>(rows, new_scale, new_offset).cost, false);
}

/// Candidates are pairs (a, b): with the block's smallest value m and its width w, offset m + a w and scale b w.
inline Choice search_both(const Rows& rows) {
  const EncodeRequest& r = *rows.request;
  Floats low = load(rows.x), high = low;
  for (int64_t k = 1; k < rows.columns; ++k) {
    low = least(load(rows.x + k * kTileRows), low);
    high = greatest(load(rows.x + k * kTileRows), high);
  }
  const Floats width = least(high - low, all(FLT_MAX));
  Choice best;
  for (int64_t c = 0; c < r.count; ++c) {
    const Floats offset = round_half(low + width * r.candidates[2 * c]);
    const Floats scale = round_half(width * r.candidates[2 * c + 1]);
    const Sums sums = pass<Integers, true>(rows, scale, offset);
    keep_better(best, scale, offset, sums.cost, c == 0);
    if (r.refits > 0) refit_both(rows, scale, offset, sums, best);
  }
  for (int64_t i = 0; i < r.refits; ++i) {
    const Sums sums = pass<Integers, true>(rows, best.scale, best.offset);
    refit_both(rows, best.scale, best.offset, sums, best);
  }
  return best;
}

/// Codes and errors of kWidth rows, from `lane` on, with the scales that were chosen.
template <class Kind>
void finish(const Rows& rows, const Choice& choice, int lane, TileBlock& out) {
  const EncodeRequest request = *rows.request;
  const Floats inverse_scale = inverse(choice.scale);
  const bool shifted = request.offsets != nullptr;
  Floats error{}, cost{};
  Ints beyond{};
  uint8_t* codes = out.codes + lane;
  for (int64_t k = 0; k < rows.columns; ++k) {
    const Floats x = load(rows.x + k * kTileRows);
    const Floats quotient = (shifted ? x - choice.offset : x) * inverse_scale;
    const Floats q = Kind::round(request, quotient);
    const Floats e = x - (shifted ? q * choice.scale + choice.offset : q * choice.scale);
    error += e * e;
    cost += (rows.weights[k] * e) * e;
    beyond -= Kind::is_beyond(request, quotient);
    const Bytes code = __builtin_convertvector(Kind::code(request, q), Bytes);
    std::memcpy(codes + k * kTileRows, &code, sizeof code);
  }
  std::memcpy(out.scales + lane, &choice.scale, sizeof choice.scale);
  std::memcpy(out.offsets + lane, &choice.offset, sizeof choice.offset);
  std::memcpy(out.errors + lane, &error, sizeof error);
  std::memcpy(out.costs + lane, &cost, sizeof cost);
  std::memcpy(out.saturated + lane, &beyond, sizeof beyond);
}

/// Encodes one block of a tile; see tile.h.
void encode_block(const EncodeRequest& request, const float* x, const float* weights, int64_t columns, TileBlock& out) {
  for (int lane = 0; lane < kTileRows; lane += kWidth) {
    const Rows rows{&request, x + lane, weights, columns};
    if (request.mantissa >= 0) {
      finish<SmallFloats>(rows, search_scale<SmallFloats>(rows), lane, out);
    } else {
      const Choice choice = request.offsets != nullptr ? search_both(rows) : search_scale<Integers>(rows);
      finish<Integers>(rows, choice, lane, out);
    }
  }
}
