#include "tests/bench/pod/report.h"

#include <fmt/format.h>

#include <algorithm>

namespace lamina::bench {
namespace {

std::string Number(double value, const std::string& unit) {
  const std::string text = value >= 100  ? fmt::format("{:.0f}", value)
                           : value >= 10 ? fmt::format("{:.1f}", value)
                                         : fmt::format("{:.3f}", value);
  return unit.empty() ? text : text + " " + unit;
}

}  // namespace

void Report::Section(std::string title) { lines_.push_back({std::move(title), "", "", "", ""}); }

void Report::Judge(std::string figure, double value, double budget, const char* relation, bool met,
                   const std::string& unit, std::string how) {
  if (!met) ++missed_;
  lines_.push_back({std::move(figure), Number(value, unit),
                    fmt::format("{} {:g}{}{}", relation, budget, unit.empty() ? "" : " ", unit),
                    met ? "ok" : "OVER", std::move(how)});
}

void Report::AtMost(std::string figure, double value, double budget, std::string unit, std::string how) {
  Judge(std::move(figure), value, budget, "<=", value <= budget, unit, std::move(how));
}

void Report::AtLeast(std::string figure, double value, double budget, std::string unit, std::string how) {
  Judge(std::move(figure), value, budget, ">=", value >= budget, unit, std::move(how));
}

void Report::Show(std::string figure, double value, std::string unit, std::string how) {
  lines_.push_back({std::move(figure), Number(value, unit), "", "", std::move(how)});
}

std::string Report::Text() const {
  size_t width = std::string("**figure**").size();
  for (const Line& line : lines_) width = std::max(width, line.figure.size() + (line.value.empty() ? 4 : 0));
  const auto row = [&](const Line& line) {
    return fmt::format("| {:<{}} | {:>12} | {:>12} | {:<4} | {}\n", line.figure, width, line.value,
                       line.budget, line.verdict, line.how);
  };
  std::string text = row({"figure", "measured", "budget", "", ""});
  text += fmt::format("|-{:-<{}}-|-{:->12}-|-{:->12}-|-{:-<4}-|\n", "", width, "", "", "");
  for (const Line& line : lines_) {
    const bool title = line.value.empty();
    text += title ? fmt::format("| {:<{}} |\n", "**" + line.figure + "**", width) : row(line);
  }
  return text;
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace lamina::bench
