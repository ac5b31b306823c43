#include "guest/agent/shared_names.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "tests/testing/temp_dir.h"

namespace lamina::guest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

class SharedNamesTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return dir_.path() + "/" + name; }
  // What is left once it is `count`, or after 20 s.
  size_t LeftOnceItIs(size_t count) {
    const auto deadline = steady_clock::now() + seconds(20);
    while (names_.left() != count && steady_clock::now() < deadline)
      std::this_thread::sleep_for(milliseconds(1));
    return names_.left();
  }

  testing::TempDir dir_;
  SharedNames names_{dir_.path(), milliseconds(1)};
};

TEST_F(SharedNamesTest, ANameIsLookedForUntilTheHostHasTakenItAway) {
  for (const char* name : {"a", "b"}) ASSERT_EQ(mkdir(Path(name).c_str(), 0755), 0);
  names_.Use({"a", "b"});
  EXPECT_EQ(names_.left(), 0u);
  names_.Leave({"a", "b"});
  EXPECT_EQ(names_.left(), 2u);
  ASSERT_EQ(rmdir(Path("a").c_str()), 0);
  names_.Leave({});
  EXPECT_EQ(LeftOnceItIs(1), 1u);
  // However long the host takes for the other, it is looked for again when there is more to look for.
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_EQ(names_.left(), 1u);
  ASSERT_EQ(rmdir(Path("b").c_str()), 0);
  names_.Use({"never there"});
  names_.Leave({"never there"});
  EXPECT_EQ(LeftOnceItIs(0), 0u);
}

TEST_F(SharedNamesTest, ANameIsLeftByItsLastUser) {
  ASSERT_EQ(mkdir(Path("a").c_str(), 0755), 0);
  names_.Use({"a"});
  names_.Use({"a"});
  names_.Leave({"a"});
  EXPECT_EQ(names_.left(), 0u);
  names_.Leave({"a"});
  EXPECT_EQ(names_.left(), 1u);
  names_.Leave({"a"});
  EXPECT_EQ(names_.left(), 1u);
  // Who takes it up again has it.
  names_.Use({"a"});
  EXPECT_EQ(names_.left(), 0u);
}

}  // namespace
}  // namespace lamina::guest
