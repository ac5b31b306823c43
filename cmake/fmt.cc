// fmt's implementation, compiled once for all: Debian ships it as headers and as a shared library, and the
// shim and the agent are static. As headers in each source it took more than half of every compilation.
#include <fmt/format-inl.h>

FMT_BEGIN_NAMESPACE
namespace detail {
template thousands_sep_result<char> thousands_sep_impl(locale_ref);
template char decimal_point_impl(locale_ref);
template dragonbox::decimal_fp<float> dragonbox::to_decimal(float) noexcept;
template dragonbox::decimal_fp<double> dragonbox::to_decimal(double) noexcept;
template void buffer<char>::append(const char*, const char*);
template void vformat_to(buffer<char>&, basic_string_view<char>, format_args, locale_ref);
}  // namespace detail
FMT_END_NAMESPACE
