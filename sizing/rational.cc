#include "sizing/rational.h"

#include <algorithm>

#include "base/status.h"

namespace lamina::sizing {
namespace {

using Wide = unsigned __int128;

Wide Gcd(Wide a, Wide b) {
  while (b != 0) {
    a %= b;
    std::swap(a, b);
  }
  return a;
}

bool Multiply(Wide a, Wide b, Wide& out) {
  if (a != 0 && b > (~Wide{0} >> 1) / a) return false;
  out = a * b;
  return true;
}

std::string Decimal(Wide value) {
  std::string text;
  do {
    text.push_back(static_cast<char>('0' + static_cast<int>(value % 10)));
    value /= 10;
  } while (value != 0);
  std::reverse(text.begin(), text.end());
  return text;
}

}  // namespace

Rational::Rational(uint64_t numerator, uint64_t denominator) {
  const Wide divisor = Gcd(numerator, denominator);
  numerator_ = numerator / divisor;
  denominator_ = denominator / divisor;
}

// Both over their least common denominator.
absl::Status Rational::Align(const Rational& other, Wide& mine, Wide& theirs, Wide& denominator) const {
  const Wide divisor = Gcd(denominator_, other.denominator_);
  if (!Multiply(numerator_, other.denominator_ / divisor, mine) ||
      !Multiply(other.numerator_, denominator_ / divisor, theirs) ||
      !Multiply(denominator_, other.denominator_ / divisor, denominator)) {
    return absl::OutOfRangeError("the CPU limits cannot be added exactly: their periods are too different");
  }
  return absl::OkStatus();
}

Rational Rational::Reduced(Wide numerator, Wide denominator) {
  const Wide common = Gcd(numerator, denominator);
  Rational result;
  result.numerator_ = numerator / common;
  result.denominator_ = denominator / common;
  return result;
}

absl::StatusOr<Rational> Rational::Plus(const Rational& other) const {
  Wide mine, theirs, denominator;
  RETURN_IF_ERROR(Align(other, mine, theirs, denominator));
  if (mine > (~Wide{0} >> 1) - theirs) return absl::OutOfRangeError("the sum of the CPU limits is too large");
  return Reduced(mine + theirs, denominator);
}

absl::StatusOr<Rational> Rational::MinusOrZero(const Rational& other) const {
  Wide mine, theirs, denominator;
  RETURN_IF_ERROR(Align(other, mine, theirs, denominator));
  return mine > theirs ? Reduced(mine - theirs, denominator) : Rational();
}

absl::StatusOr<bool> Rational::Less(const Rational& other) const {
  Wide mine, theirs, denominator;
  RETURN_IF_ERROR(Align(other, mine, theirs, denominator));
  return mine < theirs;
}

absl::StatusOr<uint64_t> Rational::Ceil() const {
  const Wide value = numerator_ / denominator_ + (numerator_ % denominator_ != 0 ? 1 : 0);
  if (value > INT64_MAX) return absl::OutOfRangeError("the sum of the CPU limits is too large");
  return static_cast<uint64_t>(value);
}

std::string Rational::ToString() const {
  std::string text = Decimal(numerator_ / denominator_);
  Wide rest = numerator_ % denominator_;
  if (rest == 0) return text;
  std::string digits;
  while (rest != 0 && digits.size() < 18) {
    Wide scaled;
    if (!Multiply(rest, 10, scaled)) break;
    digits.push_back(static_cast<char>('0' + static_cast<int>(scaled / denominator_)));
    rest = scaled % denominator_;
  }
  if (rest == 0) return text + "." + digits;
  return Decimal(numerator_) + "/" + Decimal(denominator_);
}

int64_t Rational::ToNano() const {
  const Wide whole = std::min<Wide>(numerator_ / denominator_, 9'000'000'000);
  Wide scaled = 0;
  if (!Multiply(numerator_ % denominator_, 1'000'000'000, scaled)) scaled = 0;
  return static_cast<int64_t>(whole * 1'000'000'000 + scaled / denominator_);
}

}  // namespace lamina::sizing
