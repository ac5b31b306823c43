#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace lamina::sizing {

// A non-negative fraction, always reduced: CPU limits (quota/period) add up exactly.
class Rational {
 public:
  Rational() = default;
  // `denominator` > 0.
  Rational(uint64_t numerator, uint64_t denominator);

  // OutOfRange when the exact sum does not fit 127 bits (limits with hundreds of unrelated periods).
  absl::StatusOr<Rational> Plus(const Rational& other) const;
  // This minus `other`, never below zero. OutOfRange as for Plus.
  absl::StatusOr<Rational> MinusOrZero(const Rational& other) const;
  absl::StatusOr<bool> Less(const Rational& other) const;
  // Rounded up to a whole number; OutOfRange over 2^63-1.
  absl::StatusOr<uint64_t> Ceil() const;
  bool is_zero() const { return numerator_ == 0; }
  // The exact decimal where there is a finite one of at most 18 places ("0.75"), else the fraction ("1/3").
  std::string ToString() const;
  // Rounded down to 10^-9; for metrics only.
  int64_t ToNano() const;

 private:
  using Wide = unsigned __int128;
  absl::Status Align(const Rational& other, Wide& mine, Wide& theirs, Wide& denominator) const;
  static Rational Reduced(Wide numerator, Wide denominator);

  Wide numerator_ = 0, denominator_ = 1;
};

}  // namespace lamina::sizing
