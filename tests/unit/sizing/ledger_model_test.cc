#include "tests/unit/sizing/ledger_model.h"

#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <set>
#include <thread>

namespace lamina::sizing {
namespace {

constexpr int kIds = 6;

// The first operation after which ledger and model differ.
template <typename Subject>
std::optional<size_t> FirstDifference(const std::vector<Operation>& operations, Subject apply) {
  Model model;
  Ledger ledger(kModelCapacity, {{0, kModelNode0}, {1, kModelNode1}});
  for (size_t i = 0; i < operations.size(); ++i) {
    if (apply(ledger, operations[i]) != model.Apply(operations[i])) return i;
  }
  return std::nullopt;
}

std::vector<Operation> RandomSequence(uint64_t seed, int length) {
  std::mt19937_64 random(seed);
  std::vector<Operation> operations;
  for (int i = 0; i < length; ++i) operations.push_back(RandomOperation(random, kIds));
  return operations;
}

std::string ToText(const std::vector<Operation>& operations) {
  std::string text;
  for (const Operation& op : operations) text += "\n  " + ToString(op);
  return text;
}

TEST(LedgerModel, TheLedgerAgreesWithAModel) {
  for (uint64_t seed = 0; seed < 5000; ++seed) {
    const std::vector<Operation> operations = RandomSequence(seed, 60);
    if (!FirstDifference(operations, Apply)) continue;
    const auto shrunk = Shrink(operations, [](const std::vector<Operation>& some) {
      return FirstDifference(some, Apply).has_value();
    });
    FAIL() << "seed " << seed << ", shrunk to" << ToText(shrunk);
  }
}

// The test's own proof: a ledger with a mistake in it is found, and what is shown is as short as it can be.
TEST(LedgerModel, AMistakeIsFoundAndShrunk) {
  const auto forgetful = [](Ledger& ledger, const Operation& op) {
    Outcome out = Apply(ledger, op);
    if (op.kind == Operation::kCommit && out.code == absl::StatusCode::kOk) {
      // As if the build's end kept the rest: one byte of it.
      ledger.Retarget(IdOf(op.id), 0, ledger.totals().resident_bytes + 1).IgnoreError();
      out.available = ledger.totals().available_bytes;
      out.claimed = ledger.totals().claimed_bytes;
    }
    return out;
  };
  const auto fails = [&](const std::vector<Operation>& some) {
    return FirstDifference(some, forgetful).has_value();
  };
  std::vector<Operation> failing;
  for (uint64_t seed = 0; failing.empty() && seed < 100; ++seed) {
    const auto operations = RandomSequence(seed, 60);
    if (fails(operations)) failing = operations;
  }
  ASSERT_FALSE(failing.empty());
  const auto shrunk = Shrink(failing, fails);
  ASSERT_EQ(shrunk.size(), 2u) << ToText(shrunk);  // something that makes an entry, and the commit
  EXPECT_EQ(shrunk[1].kind, Operation::kCommit);
}

// --- threads ---

struct Call {
  Operation op;
  Outcome outcome;
  int begin = 0, end = 0;  // of one count over all threads
};

// Is there an order of the calls that the model explains, and in which no call stands before one that had
// ended before it began?
bool Explains(const Model& model, const std::vector<Call>& calls, uint64_t done) {
  if (done == (uint64_t{1} << calls.size()) - 1) return true;
  int first_end = INT32_MAX;
  for (size_t i = 0; i < calls.size(); ++i) {
    if ((done >> i & 1) == 0) first_end = std::min(first_end, calls[i].end);
  }
  for (size_t i = 0; i < calls.size(); ++i) {
    if ((done >> i & 1) != 0 || calls[i].begin > first_end) continue;
    Model next = model;
    const Outcome outcome = next.Apply(calls[i].op);
    if (outcome.code == calls[i].outcome.code && outcome.value == calls[i].outcome.value &&
        Explains(next, calls, done | uint64_t{1} << i)) {
      return true;
    }
  }
  return false;
}

TEST(LedgerModel, ThreadsSeeOneOrder) {
  constexpr int kThreads = 4, kCallsEach = 4;
  for (uint64_t seed = 0; seed < 400; ++seed) {
    Ledger ledger(kModelCapacity, {{0, kModelNode0}, {1, kModelNode1}});
    std::atomic<int> count{0}, waiting{0};
    std::vector<std::vector<Call>> each(kThreads);
    {
      std::vector<std::jthread> threads;
      for (int t = 0; t < kThreads; ++t) {
        threads.emplace_back([&, t] {
          std::mt19937_64 random(seed * kThreads + static_cast<uint64_t>(t));
          ++waiting;
          while (waiting < kThreads) std::this_thread::yield();
          for (int i = 0; i < kCallsEach; ++i) {
            Call call;
            call.op = RandomOperation(random, 2);  // few ids: they meet
            call.begin = ++count;
            call.outcome = Apply(ledger, call.op);
            call.end = ++count;
            each[static_cast<size_t>(t)].push_back(call);
          }
        });
      }
    }
    std::vector<Call> calls;
    for (const auto& some : each) calls.insert(calls.end(), some.begin(), some.end());
    std::string text;
    for (const Call& call : calls) {
      text += fmt::format("\n  {}..{} {} -> {} {}", call.begin, call.end, ToString(call.op),
                          static_cast<int>(call.outcome.code), call.outcome.value);
    }
    ASSERT_TRUE(Explains(Model(), calls, 0)) << "seed " << seed << ": no order explains" << text;
  }
}

TEST(LedgerModel, ThreadsThatDisagreeAreNoticed) {
  Call first, second;
  first.op.kind = second.op.kind = Operation::kClaim;
  first.op.x = second.op.x = 600;
  second.op.id = 1;
  first.outcome.value = 1;
  second.outcome.value = 2;  // both granted: more than there is
  first.begin = second.begin = 1;
  first.end = second.end = 2;
  EXPECT_FALSE(Explains(Model(), {first, second}, 0));
}

}  // namespace
}  // namespace lamina::sizing
