// The table that a benchmark of the whole chain prints: one line for each figure, with its budget.
#pragma once

#include <string>
#include <vector>

namespace lamina::bench {

// Figures are in the order in which they were added. Not thread-safe.
class Report {
 public:
  // A group of lines.
  void Section(std::string title);
  // `value` must be at most, or at least, `budget`. `how`: what was compared, in a few words.
  void AtMost(std::string figure, double value, double budget, std::string unit, std::string how = "");
  void AtLeast(std::string figure, double value, double budget, std::string unit, std::string how = "");
  // Shown, without a budget.
  void Show(std::string figure, double value, std::string unit, std::string how = "");

  // A table as docs/SPECIFICATION.md has it.
  std::string Text() const;
  // Lines over their budget.
  int missed() const { return missed_; }

 private:
  struct Line {
    std::string figure, value, budget, verdict, how;
  };
  void Judge(std::string figure, double value, double budget, const char* relation, bool met,
             const std::string& unit, std::string how);
  std::vector<Line> lines_;
  int missed_ = 0;
};

// The middle value; of an even number the mean of the two. 0 for none.
double Median(std::vector<double> values);

}  // namespace lamina::bench
