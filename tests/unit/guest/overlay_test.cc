#include "guest/agent/overlay.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

TEST(Overlay, LayersStandTopmostFirst) {
  EXPECT_EQ(*OverlayOptions({"0", "3"}, "/run/lamina/containers/a/rw/u", "/run/lamina/containers/a/rw/w"),
            "lowerdir=0:3,upperdir=/run/lamina/containers/a/rw/u,workdir=/run/lamina/containers/a/rw/w");
}

TEST(Overlay, FiveHundredLayersFitAPageBehindTheLongestId) {
  std::vector<std::string> links;
  for (int i = 0; i < 500; ++i) links.push_back(std::to_string(i));
  const std::string directory = "/run/lamina/containers/" + std::string(128, 'x');
  const auto options = OverlayOptions(links, directory + "/rw/u", directory + "/rw/w");
  ASSERT_OK(options);
  EXPECT_LE(options->size(), 4095u);
  links.push_back("500");
  EXPECT_THAT(OverlayOptions(links, "/u", "/w"), testing::HasStatus(absl::StatusCode::kInvalidArgument));
}

TEST(Overlay, NamesThatWouldBeReadAsOptionsAreRefused) {
  EXPECT_NOT_OK(OverlayOptions({}, "/u", "/w"));
  for (const char* bad : {"", "a:b", "a,upperdir=/", "a\\"})
    EXPECT_NOT_OK(OverlayOptions({bad}, "/u", "/w")) << bad;
}

TEST(Overlay, OptionsOverAPageAreRefused) {
  EXPECT_NOT_OK(OverlayOptions({std::string(4096, 'a')}, "/u", "/w"));
}

}  // namespace
}  // namespace lamina::guest
